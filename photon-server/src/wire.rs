//! Requests as Moondream writes them in JSON, whoever carries it: `POST /v1/{skill}`, a line of a batch,
//! the tensors of a Triton client, a skill within a chat completion.
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use photon::{
    Answer, Budget, CaptionLength, FinishReason, Grammar, ImageSource, Request, Sampling, Skill,
};
use serde_json::{Map, Value};

use crate::fields::{Fields, Invalid};

/// Padding is optional: not every client adds it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The skills that have a request of their own; `chat` has messages.
pub const SKILLS: [&str; 6] = ["query", "caption", "detect", "point", "segment", "gaze"];

/// What holds where a request says nothing else. `None` is what is usual for the skill.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// 0 takes the likeliest token.
    pub temperature: Option<f32>,
    /// Keep the likeliest tokens up to this share.
    pub top_p: Option<f32>,
    /// Keep this many of the likeliest tokens.
    pub top_k: Option<u32>,
    /// Drop tokens below this share of the likeliest one's.
    pub min_p: Option<f32>,
    /// Of the random numbers.
    pub seed: u64,
    /// Most tokens.
    pub max_tokens: usize,
    /// Most objects and points.
    pub max_objects: usize,
    /// Whether a question is thought about.
    pub reasoning: bool,
}

/// A request without its pictures, its adapter and its deadline.
///
/// # Errors
/// What is wrong with which field. A skill that is none of [`SKILLS`] is wrong too.
pub fn request(skill: &str, fields: &Fields<'_>, defaults: &Defaults) -> Result<Request, Invalid> {
    with_settings(self::skill(skill, fields, defaults)?, fields, defaults)
}

/// A request of any skill with the settings that the fields give.
///
/// # Errors
/// What is wrong with which field.
pub fn with_settings(
    skill: Skill,
    fields: &Fields<'_>,
    defaults: &Defaults,
) -> Result<Request, Invalid> {
    let mut request = Request::new(skill, None::<ImageSource>);
    let usual = request.sampling;
    request.sampling = Sampling {
        temperature: defaults.temperature.unwrap_or(usual.temperature),
        top_p: defaults.top_p.unwrap_or(usual.top_p),
        top_k: defaults.top_k.unwrap_or(usual.top_k),
        min_p: defaults.min_p.unwrap_or(usual.min_p),
        seed: defaults.seed,
    };
    request.budget = Budget { max_tokens: defaults.max_tokens, max_objects: defaults.max_objects };
    request.stop = fields.strings("stop")?;
    request.grammar = grammar(fields)?;
    if let Some(settings) = fields.object("settings", "settings.")? {
        self::settings(&settings, &mut request)?;
    }
    request.sampling.check().map_err(|rejected| Invalid::at("settings", rejected.to_string()))?;
    Ok(request)
}

fn settings(settings: &Fields<'_>, request: &mut Request) -> Result<(), Invalid> {
    // More than any context holds is as much as it holds.
    let count = |name| -> Result<Option<usize>, Invalid> {
        Ok(settings.integer(name, 1)?.map(|n| n.min(u64::from(u32::MAX)) as usize))
    };
    let Request { sampling, budget, stop, .. } = request;
    sampling.temperature = settings.float("temperature")?.unwrap_or(sampling.temperature);
    sampling.top_p = settings.float("top_p")?.unwrap_or(sampling.top_p);
    sampling.min_p = settings.float("min_p")?.unwrap_or(sampling.min_p);
    let top_k = settings.integer("top_k", 0)?.map(|k| u32::try_from(k).unwrap_or(u32::MAX));
    sampling.top_k = top_k.unwrap_or(sampling.top_k);
    sampling.seed = settings.integer("seed", 0)?.unwrap_or(sampling.seed);
    budget.max_tokens = count("max_tokens")?.unwrap_or(budget.max_tokens);
    budget.max_objects = count("max_objects")?.unwrap_or(budget.max_objects);
    stop.extend(settings.strings("stop")?);
    Ok(())
}

fn skill(name: &str, fields: &Fields<'_>, defaults: &Defaults) -> Result<Skill, Invalid> {
    // The old local server of Moondream takes both names.
    let object = || match fields.string("object")? {
        None => Ok(fields.string("obj")?.unwrap_or_default().to_owned()),
        Some(object) => Ok(object.to_owned()),
    };
    let object = || -> Result<String, Invalid> {
        let object: String = object()?;
        if object.is_empty() { fields.required("object").map(str::to_owned) } else { Ok(object) }
    };
    match name {
        "query" => Ok(Skill::Query {
            question: fields.required("question")?.to_owned(),
            reasoning: fields.boolean("reasoning")?.unwrap_or(defaults.reasoning),
            spatial_refs: fields.spatial_refs()?,
        }),
        "caption" => Ok(Skill::Caption {
            length: match fields.string("length")? {
                None | Some("normal") => CaptionLength::Normal,
                Some("short") => CaptionLength::Short,
                Some("long") => CaptionLength::Long,
                Some(_) => return Err(fields.wrong("length", "'short', 'normal' or 'long'")),
            },
        }),
        "detect" => Ok(Skill::Detect { object: object()? }),
        "point" => Ok(Skill::Point { object: object()?, spatial_refs: fields.spatial_refs()? }),
        "segment" => Ok(Skill::Segment { object: object()?, spatial_refs: fields.spatial_refs()? }),
        "gaze" => match fields.numbers("eye").as_deref() {
            Some(&[x, y]) => Ok(Skill::Gaze { eye: [x, y] }),
            _ => Err(fields.wrong("eye", "two numbers, [x, y]")),
        },
        other => Err(Invalid::at("skill", format!("unknown skill {other:?}"))),
    }
}

fn grammar(fields: &Fields<'_>) -> Result<Option<Grammar>, Invalid> {
    match (fields.get("json_schema"), fields.get("regex")) {
        (None, None) => Ok(None),
        (Some(schema @ (Value::Object(_) | Value::Bool(_))), None) => {
            Ok(Some(Grammar::JsonSchema(schema.to_string())))
        }
        (None, Some(Value::String(pattern))) => Ok(Some(Grammar::Regex(pattern.clone()))),
        (Some(_), None) => Err(fields.wrong("json_schema", "a JSON schema, as an object")),
        (None, Some(_)) => Err(fields.wrong("regex", "a string")),
        (Some(_), Some(_)) => Err(Invalid::at("regex", "give one of 'json_schema' and 'regex'")),
    }
}

/// Bytes from bare base64, padded or not, broken into lines or not, or from a data URI.
///
/// # Errors
/// If it is neither.
pub fn decode(data: &str) -> Result<Vec<u8>, Invalid> {
    let data = match data.strip_prefix("data:").map(|uri| uri.split_once(',')) {
        None => data,
        Some(Some((kind, data))) if kind.ends_with(";base64") => data,
        Some(_) => return Err(Invalid::new("a data URI must be data:image/...;base64,...")),
    };
    // Broken into lines it is seldom, and looking first would take as long as decoding.
    let bytes = BASE64.decode(data).or_else(|error| {
        let joined: String = data.split_ascii_whitespace().collect();
        if joined.len() == data.len() { Err(error) } else { BASE64.decode(joined) }
    });
    bytes.map_err(|error| Invalid::new(format!("the picture is not base64: {error}")))
}

/// An answer's own fields.
pub fn answer(answer: &Answer) -> Map<String, Value> {
    match serde_json::to_value(answer) {
        Ok(Value::Object(map)) => map,
        other => unreachable!("answers are objects: {other:?}"),
    }
}

/// Why an answer ended, by the name that every dialect has for it.
pub fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
