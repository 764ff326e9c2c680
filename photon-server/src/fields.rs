//! Reading JSON that somebody else wrote: strict types, and errors that name the field.
//!
//! A boolean is a JSON boolean, an integer has no fraction, a number may be an integer, strings are
//! trimmed, `null` is the same as nothing, unknown names are ignored.
use memchr::memchr2;
use photon::SpatialRef;
use serde_json::{Map, Value};

/// Deepest nesting that is read.
pub const MAX_DEPTH: usize = 64;

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The field, where there is one.
    pub field: Option<String>,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Invalid {
    /// About the whole.
    pub fn new(message: impl Into<String>) -> Self {
        Invalid { field: None, message: message.into() }
    }

    /// About one field.
    pub fn at(field: impl Into<String>, message: impl Into<String>) -> Self {
        Invalid { field: Some(field.into()), message: message.into() }
    }
}

/// JSON of any kind, not nested deeper than [`MAX_DEPTH`].
///
/// # Errors
/// What is wrong, and where.
pub fn parse(bytes: &[u8]) -> Result<Value, Invalid> {
    if depth(bytes) > MAX_DEPTH {
        return Err(Invalid::new(format!("nested deeper than {MAX_DEPTH} levels")));
    }
    serde_json::from_slice(bytes).map_err(|error| Invalid::new(error.to_string()))
}

/// How deep brackets nest outside of strings, whether or not they match.
fn depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => at += string_rest(&bytes[at..]),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Bytes from a string's opening quote to behind its closing one. Most of a body is a picture in one string, so
/// this must not look at every byte by itself.
fn string_rest(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(found) = memchr2(b'"', b'\\', bytes.get(at..).unwrap_or_default()) {
        at += found + 1;
        if bytes[at - 1] == b'"' {
            return at;
        }
        // What is escaped.
        at += 1;
    }
    bytes.len()
}

/// An object's fields by type.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// What comes before names in messages: `""` or `"settings."`.
    at: &'static str,
}

impl<'a> Fields<'a> {
    /// Of an object that the messages need not name.
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Fields { map, at: "" }
    }

    /// Of an object within others; `at` is what messages put before names: `"messages[]."`.
    pub fn within(map: &'a Map<String, Value>, at: &'static str) -> Self {
        Fields { map, at }
    }

    /// Any value but `null`.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// That a field must be something else.
    pub fn wrong(&self, name: &str, must: &str) -> Invalid {
        let name = format!("{}{name}", self.at);
        let message = format!("Field '{name}' must be {must}");
        Invalid::at(name, message)
    }

    /// A text, trimmed.
    pub fn string(&self, name: &str) -> Result<Option<&'a str>, Invalid> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.trim())),
            Some(_) => Err(self.wrong(name, "a string")),
        }
    }

    /// A text that must be there and hold something.
    pub fn required(&self, name: &str) -> Result<&'a str, Invalid> {
        match self.string(name)? {
            None | Some("") => Err(self.wrong(name, "a non-empty string")),
            Some(text) => Ok(text),
        }
    }

    /// `true` or `false`.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>, Invalid> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(name, "a boolean")),
        }
    }

    /// A whole number of `least` or more.
    pub fn integer(&self, name: &str, least: u64) -> Result<Option<u64>, Invalid> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n >= least => Ok(Some(n)),
            _ if value.is_i64() || value.is_u64() => {
                Err(self.wrong(name, &format!(">= {least}, received {value}")))
            }
            _ => Err(self.wrong(name, "an integer")),
        }
    }

    /// A number.
    pub fn float(&self, name: &str) -> Result<Option<f32>, Invalid> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(n)) => Ok(n.as_f64().map(|n| n as f32)),
            Some(_) => Err(self.wrong(name, "a number")),
        }
    }

    /// Numbers.
    pub fn numbers(&self, name: &str) -> Option<Vec<f32>> {
        numbers(self.get(name)?)
    }

    /// An object within.
    pub fn object(
        &self,
        name: &'static str,
        at: &'static str,
    ) -> Result<Option<Fields<'a>>, Invalid> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map, at })),
            Some(_) => Err(self.wrong(name, "an object")),
        }
    }

    /// Texts: one, or an array of them.
    pub fn strings(&self, name: &str) -> Result<Vec<String>, Invalid> {
        let wrong = || self.wrong(name, "a string or an array of strings");
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Array(texts)) => texts
                .iter()
                .map(|text| text.as_str().map(str::to_owned).ok_or_else(wrong))
                .collect(),
            Some(_) => Err(wrong()),
        }
    }

    /// Places in the picture.
    pub fn spatial_refs(&self) -> Result<Vec<SpatialRef>, Invalid> {
        let must = "an array of [x, y] or [x_min, y_min, x_max, y_max]";
        let wrong = || self.wrong("spatial_refs", must);
        let Some(value) = self.get("spatial_refs") else { return Ok(Vec::new()) };
        let refs = value.as_array().ok_or_else(wrong)?.iter().enumerate().map(|(i, one)| {
            let values = numbers(one).ok_or_else(wrong)?;
            SpatialRef::from_values(i, &values)
                .map_err(|rejected| Invalid::at("spatial_refs", rejected.to_string()))
        });
        refs.collect()
    }
}

fn numbers(value: &Value) -> Option<Vec<f32>> {
    value.as_array()?.iter().map(|n| n.as_f64().map(|n| n as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_strings_do_not_nest() {
        assert_eq!(depth(br#"{"a": "[[[[\"[[[", "b": [{}]}"#), 3);
        // Strings that nobody closes, one of them behind what escapes nothing.
        assert_eq!(depth(br#"{"a": "[[["#), 1);
        assert_eq!(depth(br#"[{"a": "[[[\"#), 2);
        let deep = "[".repeat(MAX_DEPTH + 1);
        assert!(parse(deep.as_bytes()).unwrap_err().message.contains("nested deeper"));
        let deep = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        assert!(parse(deep.as_bytes()).is_ok());
    }

    #[test]
    fn the_field_at_fault_is_named() {
        let map = parse(br#"{"a": 1, "b": true, "c": -1, "d": [1], "e": null}"#).unwrap();
        let fields = Fields::within(map.as_object().unwrap(), "settings.");
        let error = fields.string("a").unwrap_err();
        assert_eq!(error.field.as_deref(), Some("settings.a"));
        assert_eq!(error.message, "Field 'settings.a' must be a string");
        let message = |error: Invalid| error.message;
        let wrong = fields.integer("b", 1).map_err(message).unwrap_err();
        assert_eq!(wrong, "Field 'settings.b' must be an integer");
        let wrong = fields.integer("c", 1).map_err(message).unwrap_err();
        assert_eq!(wrong, "Field 'settings.c' must be >= 1, received -1");
        assert!(fields.strings("d").is_err());
        assert_eq!(fields.string("e"), Ok(None));
    }
}
