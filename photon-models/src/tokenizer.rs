//! Text to ids and back, the way back one token at a time.
//!
//! [`Tokenizer`] wraps a byte-level BPE `tokenizer.json`. [`TextStream`] turns ids into text as they
//! come: it emits a character only when its bytes are complete, never decodes anything twice, and
//! its output joined together is what decoding all ids at once would give.
mod file;

use std::{collections::HashMap, path::Path};

use file::File;

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("tokenizer.json is not usable: {0}")]
pub struct TokenizerError(String);

/// A byte-level BPE tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The bytes of each id; empty for special ids, which are never shown.
    bytes: Vec<Vec<u8>>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let json =
            crate::checkpoint::read_small(path).map_err(|e| TokenizerError(e.to_string()))?;
        Tokenizer::from_json(&json)
    }

    /// Parses the contents of a `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        let file: File = serde_json::from_slice(json).map_err(|e| TokenizerError(e.to_string()))?;
        let mut inner = file.build().map_err(TokenizerError)?;
        // A user who types "<|endoftext|>" means these characters, not the control id.
        inner.set_encode_special_tokens(true);
        let byte_of = byte_level_alphabet();
        let added = inner.get_added_tokens_decoder();
        let mut bytes = Vec::new();
        // Ids may have gaps, so there may be larger ones than there are tokens.
        let last = inner.get_vocab(true).into_values().max();
        for id in 0..last.map_or(0, |last| last + 1) {
            let piece = match (added.get(&id), inner.id_to_token(id)) {
                (Some(token), _) if token.special => Vec::new(),
                (Some(token), _) => token.content.clone().into_bytes(),
                (None, None) => Vec::new(),
                (None, Some(piece)) => {
                    let mapped: Option<Vec<u8>> =
                        piece.chars().map(|c| byte_of.get(&c).copied()).collect();
                    mapped.ok_or_else(|| {
                        TokenizerError(format!("id {id} ({piece:?}) is not byte-level BPE"))
                    })?
                }
            };
            bytes.push(piece);
        }
        Ok(Tokenizer { inner, bytes })
    }

    /// Ids in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// The ids of a text, without any control ids.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false);
        Ok(encoding.map_err(|e| TokenizerError(e.to_string()))?.get_ids().to_vec())
    }

    /// The text of all ids at once; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = TextStream::default();
        let mut text: String = ids.iter().map(|&id| stream.push(self, id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// The bytes that an id stands for, perhaps a part of a character; none for special ids.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }
}

/// Ids to text as they come.
#[derive(Debug, Default)]
pub struct TextStream {
    /// An incomplete character: at most three bytes.
    pending: Vec<u8>,
}

impl TextStream {
    /// The text that `id` completes; empty while a character is under way.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.pending.extend_from_slice(tokenizer.token_bytes(id));
        let mut text = String::new();
        let mut done = 0;
        loop {
            let rest = &self.pending[done..];
            let (valid, bad) = match std::str::from_utf8(rest) {
                Ok(valid) => (valid, None),
                Err(error) => {
                    let valid = &rest[..error.valid_up_to()];
                    let valid = std::str::from_utf8(valid).expect("checked by the line above");
                    (valid, Some(error))
                }
            };
            text.push_str(valid);
            done += valid.len();
            match bad.map(|error| error.error_len()) {
                // Bytes that no continuation can mend.
                Some(Some(len)) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    done += len;
                }
                Some(None) | None => break,
            }
        }
        self.pending.drain(..done);
        text
    }

    /// What is left at the end: U+FFFD if a character was cut short.
    pub fn finish(&mut self) -> String {
        let cut = !self.pending.is_empty();
        self.pending.clear();
        if cut { char::REPLACEMENT_CHARACTER.to_string() } else { String::new() }
    }
}

/// GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 up.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    let mut map = HashMap::new();
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let c = if printable {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).expect("U+0100..U+0144 are characters")
        };
        map.insert(c, byte);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_json(include_bytes!("../tests/data/tokenizer.json")).unwrap()
    }

    #[test]
    fn text_survives_the_round_trip() {
        let tokenizer = tokenizer();
        for text in ["", "what colour is it?", " a\n\tb ", "größer – 図形 🦀", "<|endoftext|>"]
        {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids), text);
        }
    }

    #[test]
    fn control_ids_cannot_be_typed_and_are_not_shown() {
        let tokenizer = tokenizer();
        assert!(!tokenizer.encode("<|endoftext|>").unwrap().contains(&0));
        assert_eq!(tokenizer.decode(&[0]), "");
        assert_eq!(tokenizer.decode(&[u32::MAX]), "");
    }

    #[test]
    fn a_stream_never_emits_half_a_character_and_misses_nothing() {
        let tokenizer = tokenizer();
        let text = "🦀図a";
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.len() > text.chars().count(), "the test needs split characters: {ids:?}");
        let mut stream = TextStream::default();
        let parts: Vec<String> = ids.iter().map(|&id| stream.push(&tokenizer, id)).collect();
        assert!(parts.iter().all(|p| !p.contains(char::REPLACEMENT_CHARACTER)), "{parts:?}");
        assert_eq!(parts.concat() + &stream.finish(), text);
    }

    #[test]
    fn random_ids_stream_to_what_decoding_their_bytes_at_once_gives() {
        let tokenizer = tokenizer();
        let mut seed = 7u64;
        for _ in 0..200 {
            let ids: Vec<u32> = (0..20)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 33) as u32 % tokenizer.vocab_size() as u32
                })
                .collect();
            let bytes: Vec<u8> =
                ids.iter().flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect();
            assert_eq!(tokenizer.decode(&ids), String::from_utf8_lossy(&bytes), "{ids:?}");
        }
    }

    #[test]
    fn a_broken_file_is_an_error() {
        assert!(Tokenizer::from_json(b"{").is_err());
        assert!(Tokenizer::from_json(b"{\"model\": {}}").is_err());
    }

    /// A small tokenizer with some members in place of others.
    fn with(members: &[(&str, &str)]) -> Result<Tokenizer, TokenizerError> {
        let mut json: serde_json::Value = serde_json::from_str(
            r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}}"#,
        )
        .unwrap();
        for (pointer, value) in members {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let value = serde_json::from_str(value).unwrap();
            json.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.into(), value);
        }
        Tokenizer::from_json(json.to_string().as_bytes())
    }

    #[test]
    fn what_moondream_has_no_use_for_is_refused_or_not_read() {
        #[track_caller]
        fn refuses(pointer: &str, value: &str, message: &str) {
            let error = with(&[(pointer, value)]).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        refuses("/model/type", "\"Unigram\"", "unknown variant `Unigram`");
        refuses("/model/vocab", r#"{"a": 4294967295}"#, "ids end at");
        refuses("/model/dropout", "0.5", "at random");
        refuses("/model/continuing_subword_prefix", "\"##\"", "parts of words");
        refuses("/model/merges", r#"["ab"]"#, "not two parts");
        refuses("/model/merges", r#"["a c"]"#, "out of vocabulary");
        refuses("/pre_tokenizer", r#"{"type": "Metaspace"}"#, "unknown variant `Metaspace`");
        refuses("/normalizer", r#"{"type": "Lowercase"}"#, "unknown variant `Lowercase`");
        let split = r#"{"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated",
            "invert": false}"#;
        refuses("/pre_tokenizer", split, "arsing error");
        refuses("/pre_tokenizer", &split.replace("Regex\": \"(", "String\": \""), "an empty text");
        for (regex, message) in [
            ("((a{00}){99}){99}", "repeats 9801 times"),
            ("(?x)a{#\\n 999 }", "repeats 999 times"),
            ("a{2,99999999999999999999}", "repeats 18446744073709551615 times"),
            (&"a".repeat(5000), "of 5000 bytes"),
        ] {
            refuses("/pre_tokenizer", &split.replace('(', regex), message);
        }
        let many = r#"{"type": "NFC"},"#.repeat(17);
        let many =
            format!(r#"{{"type": "Sequence", "normalizers": [{}]}}"#, &many[..many.len() - 1]);
        refuses("/normalizer", &many, "more than 16 parts");

        let ignored = [
            ("/truncation", r#"{"max_length": 1, "strategy": "LongestFirst", "stride": 0}"#),
            ("/padding", r#"{"strategy": {"Fixed": 1000000000000}}"#),
            ("/post_processor", r#"{"type": "Nonsense"}"#),
            ("/decoder", "7"),
        ];
        assert_eq!(with(&ignored).unwrap().encode("abba").unwrap(), [2, 1, 0]);
    }

    #[test]
    fn ids_may_have_gaps() {
        let tokenizer = with(&[("/model/vocab", r#"{"a": 0, "b": 1, "ab": 700}"#)]).unwrap();
        assert_eq!(tokenizer.vocab_size(), 701);
        assert_eq!(tokenizer.encode("aba").unwrap(), [700, 0]);
        assert_eq!(tokenizer.decode(&[700, 3, 0]), "aba");
    }

    #[test]
    fn text_is_cut_as_the_file_says() {
        let split = r#"{"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "(?<=a)b"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]}"#;
        let tokenizer = with(&[("/pre_tokenizer", split)]).unwrap();
        assert_eq!(tokenizer.encode("ab").unwrap(), [0, 1]);
        let merges = r#"[["a", "b"]]"#;
        assert_eq!(with(&[("/model/merges", merges)]).unwrap().encode("ab").unwrap(), [2]);
    }
}
