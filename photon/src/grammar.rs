//! What an answer may be made of.

/// What the answer of a query or a chat must be; the model chooses among the ids that lead there.
///
/// The text of a finished answer is of the grammar; one that the budget ended is the beginning of such a
/// text. Stop strings end it wherever they appear. With reasoning, the answer alone is restricted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Grammar {
    /// JSON that this schema describes (draft 2020-12 and before, without what cannot be promised: such
    /// schemas are refused). On one line, `", "` and `": "` between things, keys in the schema's order.
    JsonSchema(String),
    /// A JSON object.
    Json,
    /// A text that this regular expression matches as a whole, in the syntax of the `regex` crate, without
    /// looking around.
    Regex(String),
}

impl Grammar {
    /// Most bytes of its text: 64 KiB of a schema, 16 of a regular expression.
    pub fn max_bytes(&self) -> usize {
        match self {
            Grammar::JsonSchema(_) | Grammar::Json => 64 << 10,
            Grammar::Regex(_) => 16 << 10,
        }
    }

    /// The text of the schema or regular expression.
    pub(crate) fn text(&self) -> &str {
        match self {
            Grammar::JsonSchema(text) | Grammar::Regex(text) => text,
            Grammar::Json => r#"{"type": "object"}"#,
        }
    }

    /// What it is, in messages.
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Grammar::JsonSchema(_) | Grammar::Json => "JSON schema",
            Grammar::Regex(_) => "regular expression",
        }
    }
}

/// Why a grammar cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// A skill whose answer is no free text.
    #[error("{0} takes no JSON schema and no regular expression; query and chat do")]
    Skill(&'static str),
    /// A benchmark's request.
    #[error("an answer of a forced length follows no grammar")]
    ForcedLength,
    /// Too much text.
    #[error("the {what} has {bytes} bytes, the most is {max}")]
    TooLong {
        /// Schema or regular expression.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The most.
        max: usize,
    },
    /// A schema that is not JSON.
    #[error("the JSON schema is not JSON: {0}")]
    NotJson(String),
    /// A schema that says nothing, contradicts itself, or cannot be followed.
    #[error("the JSON schema cannot be used: {why}{}{at}", if at.is_empty() { "" } else { ", at " })]
    Schema {
        /// A JSON pointer to the part of the schema, if it is known.
        at: String,
        /// What is wrong there.
        why: String,
    },
    /// A regular expression that is none, or cannot be followed.
    #[error("the regular expression cannot be used: {0}")]
    Regex(String),
    /// A grammar that no text in the model's vocabulary is of.
    #[error("no text of the model fits the {0}")]
    Nothing(&'static str),
    /// A grammar that allows so much that following it takes too long.
    #[error("the {what} is too complex: {why}; simplify it")]
    TooComplex {
        /// Schema or regular expression.
        what: &'static str,
        /// Which limit was met.
        why: String,
    },
}
