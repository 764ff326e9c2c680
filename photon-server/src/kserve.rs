//! KServe's dialect, version 2: tensors in, tensors out, over HTTP (`http`) and gRPC (`grpc`).
//!
//! The model has the tensors that Moondream's Triton server has: `SKILL`, `QUESTION`, `OBJECT`, `IMAGE`,
//! `LENGTH`, `TEMPERATURE`, `TOP_P`, `MAX_TOKENS`, `MAX_OBJECTS`, `REASONING`, `STREAM`, `SPATIAL_REFS`; the
//! answer is the JSON of the native dialect in `TEXT_OUTPUT`. Here is what tensors mean, whoever carries
//! them; `STREAM` decides only where answers can come in pieces.
#[cfg(feature = "grpc")]
pub(crate) mod grpc;
pub(crate) mod http;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::{app::App, body::Body, error::Problem, fields::Fields, native};

/// The name the server gives itself.
const SERVER: &str = "photon";
/// What it can beyond the protocol's core.
const EXTENSIONS: [&str; 1] = ["binary_tensor_data"];
/// There is one version of a model.
const VERSION: &str = "1";

/// A tensor that the model takes.
struct Input {
    name: &'static str,
    datatype: &'static str,
    /// -1 is any size.
    shape: &'static [i64],
    /// Where the native dialect has it.
    field: &'static str,
}

const fn one(name: &'static str, datatype: &'static str, field: &'static str) -> Input {
    Input { name, datatype, shape: &[1], field }
}

const INPUTS: [Input; 12] = [
    one("SKILL", "BYTES", "skill"),
    one("QUESTION", "BYTES", "question"),
    one("OBJECT", "BYTES", "object"),
    one(IMAGE, "BYTES", "images"),
    one("LENGTH", "BYTES", "length"),
    one("TEMPERATURE", "FP32", "settings.temperature"),
    one("TOP_P", "FP32", "settings.top_p"),
    one("MAX_TOKENS", "INT32", "settings.max_tokens"),
    one("MAX_OBJECTS", "INT32", "settings.max_objects"),
    one("REASONING", "BOOL", "reasoning"),
    one("STREAM", "BOOL", "stream"),
    Input { name: SPATIAL_REFS, datatype: "FP32", shape: &[-1, -1], field: "spatial_refs" },
];

/// These two have more than one element.
const IMAGE: &str = "IMAGE";
const SPATIAL_REFS: &str = "SPATIAL_REFS";

/// The one tensor that comes back.
const OUTPUT: Input = one("TEXT_OUTPUT", "BYTES", "");

/// What a tensor holds.
enum Elements<'a> {
    Values(Vec<Value>),
    /// Of `BYTES`: texts, or pictures as they are.
    Texts(Vec<&'a [u8]>),
}

/// The tensors of a request, collected.
#[derive(Default)]
struct Inputs {
    body: Body,
    settings: Map<String, Value>,
}

/// What they ask.
#[cfg_attr(not(feature = "grpc"), expect(dead_code, reason = "over HTTP nothing comes in pieces"))]
struct Asking {
    request: photon::Request,
    skill: String,
    streams: bool,
}

impl Inputs {
    /// Adds a tensor; `shape` is only of interest for its last dimension.
    fn put(
        &mut self,
        name: &str,
        width: Option<u64>,
        elements: Elements<'_>,
    ) -> Result<(), Problem> {
        let Some(input) = INPUTS.iter().find(|known| known.name == name) else {
            let known = INPUTS.map(|input| input.name).join(", ");
            return Err(Problem::invalid(format!("no input {name:?}; there are {known}")).at(name));
        };
        let values = match elements {
            Elements::Values(values) => values,
            Elements::Texts(texts) if name == IMAGE => self.pictures(texts),
            Elements::Texts(texts) => texts.into_iter().map(text).collect(),
        };
        let value = match name {
            IMAGE => Value::from(values),
            SPATIAL_REFS => {
                let width = width.unwrap_or(2).max(1) as usize;
                values.chunks(width).map(Value::from).collect()
            }
            _ => match values.into_iter().next() {
                None => return Ok(()),
                // Clients send every tensor; an empty text is none.
                Some(empty) if empty == "" => return Ok(()),
                Some(first) => first,
            },
        };
        match input.field.split_once('.') {
            Some((_, setting)) => self.settings.insert(setting.into(), value),
            None => self.body.map.insert(input.field.into(), value),
        };
        Ok(())
    }

    /// Keeps pictures as they are; gives what is base64, which no picture's bytes are.
    fn pictures(&mut self, texts: Vec<&[u8]>) -> Vec<Value> {
        let (base64, pictures): (Vec<_>, Vec<_>) =
            texts.into_iter().partition(|bytes| bytes.is_ascii());
        self.body.files.extend(pictures.into_iter().map(Bytes::copy_from_slice));
        base64.into_iter().map(text).collect()
    }

    /// The request they are.
    async fn ask(self, app: &App, model: &str) -> Result<Asking, Problem> {
        let Inputs { mut body, settings } = self;
        let fields = Fields::new(&body.map);
        let skill = fields.string("skill")?.unwrap_or("query").to_owned();
        let streams = fields.boolean("stream")?.unwrap_or(false);
        body.map.insert("model".into(), model.into());
        body.map.insert("settings".into(), settings.into());
        let request = native::ask(app, &skill, &body).await?;
        Ok(Asking { request, skill, streams })
    }
}

/// A text, or what is none in base64.
fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => STANDARD.encode(bytes).into(),
    }
}

/// The elements of a tensor in binary.
fn elements<'a>(datatype: &str, bytes: &'a [u8], name: &str) -> Result<Elements<'a>, Problem> {
    fn numbers<const N: usize>(bytes: &[u8], one: impl Fn([u8; N]) -> Value) -> Option<Vec<Value>> {
        let (whole, rest) = bytes.as_chunks::<N>();
        rest.is_empty().then(|| whole.iter().map(|bytes| one(*bytes)).collect())
    }
    let values = match datatype {
        "BYTES" => return Ok(Elements::Texts(texts(bytes).ok_or_else(|| cut_off(name))?)),
        "BOOL" => numbers(bytes, |[byte]| (byte != 0).into()),
        "INT8" => numbers(bytes, |b| i8::from_le_bytes(b).into()),
        "INT16" => numbers(bytes, |b| i16::from_le_bytes(b).into()),
        "INT32" => numbers(bytes, |b| i32::from_le_bytes(b).into()),
        "INT64" => numbers(bytes, |b| i64::from_le_bytes(b).into()),
        "UINT8" => numbers(bytes, |b| u8::from_le_bytes(b).into()),
        "UINT16" => numbers(bytes, |b| u16::from_le_bytes(b).into()),
        "UINT32" => numbers(bytes, |b| u32::from_le_bytes(b).into()),
        "UINT64" => numbers(bytes, |b| u64::from_le_bytes(b).into()),
        "FP32" => numbers(bytes, |b| f32::from_le_bytes(b).into()),
        "FP64" => numbers(bytes, |b| f64::from_le_bytes(b).into()),
        other => {
            let message = format!("input {name} has datatype {other:?}, which is not read");
            return Err(Problem::invalid(message).at(name));
        }
    };
    Ok(Elements::Values(values.ok_or_else(|| cut_off(name))?))
}

fn cut_off(name: &str) -> Problem {
    Problem::invalid(format!("input {name} is cut off")).at(name)
}

/// Texts of a binary tensor: each with its length before it, in four bytes.
fn texts(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut all = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (own, after) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        all.push(own);
        bytes = after;
    }
    bytes.is_empty().then_some(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn put(name: &str, datatype: &str, bytes: &[u8]) -> Result<Inputs, String> {
        let mut inputs = Inputs::default();
        let put = elements(datatype, bytes, name).and_then(|all| inputs.put(name, Some(2), all));
        put.map(|()| inputs).map_err(|problem| problem.message)
    }

    #[test]
    fn binary_tensors_become_fields() {
        let body = |name, datatype, bytes: &[u8]| put(name, datatype, bytes).unwrap().body;
        assert_eq!(body("SKILL", "BYTES", b"\x05\0\0\0queryx"[..9].as_ref()).map["skill"], "query");
        assert_eq!(body("REASONING", "BOOL", &[1]).map["reasoning"], true);
        assert!(body("QUESTION", "BYTES", &[0; 4]).map.is_empty());
        let refs: Vec<u8> =
            [0.5_f32, 0.25, 0.0, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let refs = body("SPATIAL_REFS", "FP32", &refs);
        assert_eq!(refs.map["spatial_refs"], json!([[0.5, 0.25], [0.0, 1.0]]));
        let settings = put("MAX_TOKENS", "INT32", &7_i32.to_le_bytes()).unwrap().settings;
        assert_eq!(settings["max_tokens"], 7);
    }

    #[test]
    fn pictures_come_as_they_are_or_in_base64() {
        let tensor = |texts: &[&[u8]]| -> Vec<u8> {
            let one = |text: &&[u8]| [&(text.len() as u32).to_le_bytes()[..], text].concat();
            texts.iter().flat_map(one).collect()
        };
        let body = put("IMAGE", "BYTES", &tensor(&[b"\x89PNG", b"QUJD"])).unwrap().body;
        assert_eq!(body.files, [&b"\x89PNG"[..]]);
        assert_eq!(body.map["images"], json!(["QUJD"]));
    }

    #[test]
    fn tensors_that_are_none_are_refused() {
        let refuses = |name, datatype, bytes: &[u8], why: &str| {
            let message = put(name, datatype, bytes).err().unwrap();
            assert!(message.contains(why), "{message}");
        };
        refuses("SKILL", "BYTES", b"\x06\0\0\0query", "cut off");
        refuses("SKILL", "BYTES", b"\x06\0", "cut off");
        refuses("TOP_P", "FP32", &[0; 3], "cut off");
        refuses("TOP_P", "FP16", &[0; 2], "\"FP16\"");
        refuses("WINGS", "BOOL", &[0], "there are SKILL");
    }
}
