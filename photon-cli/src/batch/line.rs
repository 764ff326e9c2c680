//! One line of a batch: from its JSON to a request, or to the reason why there is none.
//!
//! The format is that of Moondream's `/v1/batch`, with `image_path`, `spatial_refs`, `eye` and a few
//! settings added. Types are strict (a boolean is a JSON boolean, an integer has no fraction),
//! strings are trimmed, `null` is the same as nothing, unknown keys are ignored. Nothing is decoded
//! here but base64: pictures are the engine's work.
use std::path::PathBuf;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use photon::{
    Budget, CaptionLength, ImageSource, Request, RunError, Sampling, Skill, SpatialRef,
    adapters::{AdapterFolder, ModelName, NameError},
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{args::SamplingArgs, names};

/// Deepest nesting of a line's JSON.
const MAX_DEPTH: usize = 64;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The kinds of failure of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    ImageDecodeFailed,
    InvalidRequest,
    UnknownSkill,
    /// The only one that may go away by itself.
    ProcessingError,
}

/// Why a line has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LineError {
    pub(crate) code: Code,
    pub(crate) message: String,
}

fn invalid(message: impl Into<String>) -> LineError {
    LineError { code: Code::InvalidRequest, message: message.into() }
}

fn bad_image(message: impl Into<String>) -> LineError {
    LineError { code: Code::ImageDecodeFailed, message: message.into() }
}

impl From<RunError> for LineError {
    fn from(error: RunError) -> Self {
        let code = match error {
            RunError::Rejected(_)
            | RunError::TooLarge { .. }
            | RunError::Adapter(_)
            | RunError::NoAdapters => Code::InvalidRequest,
            RunError::Image(_) | RunError::Open(_) => Code::ImageDecodeFailed,
            _ => Code::ProcessingError,
        };
        LineError { code, message: error.to_string() }
    }
}

/// What holds where a line says nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Defaults {
    pub(crate) sampling: SamplingArgs,
    pub(crate) max_objects: usize,
    /// Whether a question is thought about.
    pub(crate) reasoning: bool,
    /// The adapter.
    pub(crate) adapter: Option<PathBuf>,
    /// Where adapters are that lines name.
    pub(crate) adapters: Option<AdapterFolder>,
    /// What `image_path` and `adapter` are relative to.
    pub(crate) folder: PathBuf,
}

/// A line, understood or not.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// As given: a string, a number or null.
    pub(crate) id: Value,
    pub(crate) request: Result<Request, LineError>,
}

/// Reads a line.
pub(crate) fn parse(line: &[u8], defaults: &Defaults) -> Parsed {
    match object(line) {
        Err(error) => Parsed { id: Value::Null, request: Err(error) },
        Ok(map) => match id_of(&map) {
            Err(error) => Parsed { id: Value::Null, request: Err(error) },
            Ok(id) => Parsed { id, request: request(&map, defaults) },
        },
    }
}

/// The id alone.
pub(crate) fn id(line: &[u8]) -> Value {
    object(line).and_then(|map| id_of(&map)).unwrap_or(Value::Null)
}

fn object(line: &[u8]) -> Result<Map<String, Value>, LineError> {
    if depth(line) > MAX_DEPTH {
        return Err(invalid(format!("nested deeper than {MAX_DEPTH} levels")));
    }
    match serde_json::from_slice(line) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(invalid("a line must be a JSON object")),
        Err(error) => Err(invalid(format!("not JSON: {error}"))),
    }
}

/// How deep brackets nest outside of strings, whether or not they match.
fn depth(line: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in line {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

fn id_of(map: &Map<String, Value>) -> Result<Value, LineError> {
    match map.get("id") {
        None | Some(Value::Null) => Ok(Value::Null),
        Some(id @ (Value::String(_) | Value::Number(_))) => Ok(id.clone()),
        Some(_) => Err(invalid("Field 'id' must be a string or a number")),
    }
}

fn request(map: &Map<String, Value>, defaults: &Defaults) -> Result<Request, LineError> {
    let fields = Fields { map, at: "" };
    let skill = skill(&fields, defaults)?;
    let empty = Map::new();
    let settings = match map.get("settings") {
        None | Some(Value::Null) => &empty,
        Some(Value::Object(settings)) => settings,
        Some(_) => return Err(invalid("Field 'settings' must be an object")),
    };
    let settings = Fields { map: settings, at: "settings." };
    let mut drawn = defaults.sampling.clone();
    drawn.temperature = settings.float("temperature")?.or(drawn.temperature);
    drawn.top_p = settings.float("top_p")?.or(drawn.top_p);
    drawn.min_p = settings.float("min_p")?.or(drawn.min_p);
    let top_k = settings.integer("top_k", 0)?;
    drawn.top_k = top_k.map(|k| u32::try_from(k).unwrap_or(u32::MAX)).or(drawn.top_k);
    drawn.seed = settings.integer("seed", 0)?.unwrap_or(drawn.seed);
    let count = |name, default: usize| -> Result<usize, LineError> {
        // More than any context holds is as much as it holds.
        Ok(settings.integer(name, 1)?.map_or(default, |n| n.min(u64::from(u32::MAX)) as usize))
    };
    let max_tokens = count("max_tokens", drawn.max_tokens)?;
    let max_objects = count("max_objects", defaults.max_objects)?;
    let sampling = drawn.over(Sampling::default_for(&skill));
    sampling.check().map_err(|rejected| invalid(rejected.to_string()))?;

    let image = image(&fields, defaults)?;
    if image.is_none() && !matches!(skill, Skill::Query { .. }) {
        return Err(invalid(format!("{} needs an image", skill.name())));
    }
    let mut request = Request::new(skill, image);
    request.adapter = adapter(&fields, defaults)?;
    request.sampling = sampling;
    request.budget = Budget { max_tokens, max_objects };
    Ok(request)
}

/// `adapter`, a file or a name, or what `model` ends in; what comes before that is not looked at, for a batch has one
/// model.
fn adapter(fields: &Fields<'_>, defaults: &Defaults) -> Result<Option<PathBuf>, LineError> {
    let wrong = |error: NameError| invalid(error.to_string());
    let folder = defaults.adapters.as_ref();
    let model = fields.string("model")?.map(str::parse::<ModelName>).transpose().map_err(wrong)?;
    let named = model.and_then(|model| model.adapter);
    match (fields.string("adapter")?, named) {
        (Some(_), Some(_)) => Err(invalid("give an adapter in one of 'adapter' and 'model'")),
        (None, Some(name)) => names::find(&name, folder).map(Some).map_err(wrong),
        (Some(file), None) => {
            names::adapter(file.as_ref(), folder, &defaults.folder).map(Some).map_err(wrong)
        }
        (None, None) => Ok(defaults.adapter.clone()),
    }
}

fn skill(fields: &Fields<'_>, defaults: &Defaults) -> Result<Skill, LineError> {
    match fields.required("skill")? {
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
                Some(_) => {
                    return Err(invalid("Field 'length' must be 'short', 'normal' or 'long'"));
                }
            },
        }),
        "detect" => Ok(Skill::Detect { object: fields.required("object")?.to_owned() }),
        "point" => Ok(Skill::Point {
            object: fields.required("object")?.to_owned(),
            spatial_refs: fields.spatial_refs()?,
        }),
        "segment" => Ok(Skill::Segment {
            object: fields.required("object")?.to_owned(),
            spatial_refs: fields.spatial_refs()?,
        }),
        "gaze" => match fields.numbers(fields.map.get("eye").unwrap_or(&Value::Null)).as_deref() {
            Some(&[x, y]) => Ok(Skill::Gaze { eye: [x, y] }),
            _ => Err(invalid("Field 'eye' must be two numbers, [x, y]")),
        },
        other => Err(LineError {
            code: Code::UnknownSkill,
            message: format!(
                "unknown skill {other:?}; there are query, caption, detect, point, segment and gaze"
            ),
        }),
    }
}

fn image(fields: &Fields<'_>, defaults: &Defaults) -> Result<Option<ImageSource>, LineError> {
    let several = match fields.map.get("images") {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(images)) => images,
        Some(_) => return Err(invalid("Field 'images' must be an array of strings")),
    };
    let one = match several {
        [] => None,
        [Value::String(image)] => Some(image.trim()),
        [_] => return Err(invalid("Field 'images' must be an array of strings")),
        more => {
            let n = more.len();
            return Err(invalid(format!(
                "Field 'images' has {n} pictures, but a request takes one: write {n} lines"
            )));
        }
    };
    match (fields.string("image")?, one, fields.string("image_path")?) {
        (None, None, None) => Ok(None),
        (Some(data), None, None) | (None, Some(data), None) => encoded(data).map(Some),
        (None, None, Some(path)) => Ok(Some(defaults.folder.join(path).into())),
        _ => Err(invalid("give one of 'image', 'images' and 'image_path'")),
    }
}

/// Bare base64 or a data URI.
fn encoded(data: &str) -> Result<ImageSource, LineError> {
    if data.starts_with("http://") || data.starts_with("https://") {
        return Err(bad_image("addresses are not fetched; give base64, or a file as 'image_path'"));
    }
    let data = match data.strip_prefix("data:").map(|uri| uri.split_once(',')) {
        None => data,
        Some(Some((kind, data))) if kind.ends_with(";base64") => data,
        Some(_) => return Err(bad_image("a data URI must be data:image/...;base64,...")),
    };
    match BASE64.decode(data) {
        Ok(bytes) => Ok(ImageSource::Encoded(bytes)),
        Err(error) => Err(bad_image(format!("the picture is not base64: {error}"))),
    }
}

/// An object's fields by type; `null` is absent.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// What comes before names in messages.
    at: &'static str,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn wrong(&self, name: &str, must: &str) -> LineError {
        invalid(format!("Field '{}{name}' must be {must}", self.at))
    }

    fn string(&self, name: &str) -> Result<Option<&'a str>, LineError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.trim())),
            Some(_) => Err(self.wrong(name, "a string")),
        }
    }

    fn required(&self, name: &str) -> Result<&'a str, LineError> {
        match self.string(name)? {
            None | Some("") => Err(self.wrong(name, "a non-empty string")),
            Some(text) => Ok(text),
        }
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>, LineError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(name, "a boolean")),
        }
    }

    fn integer(&self, name: &str, least: u64) -> Result<Option<u64>, LineError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n >= least => Ok(Some(n)),
            _ if value.is_i64() || value.is_u64() => {
                Err(self.wrong(name, &format!(">= {least}, received {value}")))
            }
            _ => Err(self.wrong(name, "an integer")),
        }
    }

    fn float(&self, name: &str) -> Result<Option<f32>, LineError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(n)) => Ok(n.as_f64().map(|n| n as f32)),
            Some(_) => Err(self.wrong(name, "a number")),
        }
    }

    fn numbers(&self, value: &Value) -> Option<Vec<f32>> {
        value.as_array()?.iter().map(|n| n.as_f64().map(|n| n as f32)).collect()
    }

    fn spatial_refs(&self) -> Result<Vec<SpatialRef>, LineError> {
        let must = "an array of [x, y] or [x_min, y_min, x_max, y_max]";
        let wrong = || self.wrong("spatial_refs", must);
        let Some(value) = self.get("spatial_refs") else { return Ok(Vec::new()) };
        let refs = value.as_array().ok_or_else(wrong)?.iter().enumerate().map(|(i, one)| {
            let values = self.numbers(one).ok_or_else(wrong)?;
            SpatialRef::from_values(i, &values).map_err(|rejected| invalid(rejected.to_string()))
        });
        refs.collect()
    }
}

#[cfg(test)]
mod tests;
