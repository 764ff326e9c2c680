//! What is read of a `tokenizer.json`: a byte-level BPE, and how text is cut for it.
//!
//! The `tokenizers` crate trusts its files: some make it panic, some make every text grow, drop or
//! change at random. So the file is read here, into the few parts that Moondream's tokenizers have, and
//! these are checked before the crate is given them. Truncation, padding, templates and decoders are not
//! read at all: prompts have their own limits, and ids become text in `tokenizer`.
use serde::Deserialize;
use tokenizers::{
    AddedToken, SplitDelimiterBehavior, Tokenizer,
    models::bpe::{BPE, Vocab},
    normalizers::{NFC, NFD, NFKC, NFKD, NormalizerWrapper, Sequence as Normalizers},
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence as PreTokenizers,
        split::{Split, SplitPattern},
    },
};

/// No id is larger; the published vocabulary has 51,200.
const MAX_IDS: u32 = 1 << 18;
/// Parts of a normalizer or a pre-tokenizer.
const MAX_PARTS: usize = 16;
/// Bytes of a regular expression.
const MAX_REGEX: usize = 4096;
/// How often a regular expression may repeat something by number, all its repetitions multiplied: the
/// engine gives up what backtracks too long, but not what repeats nothing 99 times 99 times 99 times.
const MAX_REPEATS: u64 = 256;

/// A `tokenizer.json`.
#[derive(Deserialize)]
pub(super) struct File {
    model: Model,
    normalizer: Option<Normalizer>,
    pre_tokenizer: Option<PreTokenizer>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default, rename = "type")]
    kind: Option<Bpe>,
    vocab: Vocab,
    merges: Vec<Merge>,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
}

#[derive(Deserialize)]
enum Bpe {
    #[serde(rename = "BPE")]
    Bpe,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    /// Both with a space between.
    Line(String),
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Normalizer {
    #[serde(rename = "NFC")]
    Nfc,
    #[serde(rename = "NFD")]
    Nfd,
    #[serde(rename = "NFKC")]
    Nfkc,
    #[serde(rename = "NFKD")]
    Nfkd,
    Sequence {
        normalizers: Vec<Normalizer>,
    },
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PreTokenizer {
    ByteLevel {
        add_prefix_space: bool,
        #[serde(default = "yes")]
        use_regex: bool,
    },
    Digits {
        individual_digits: bool,
    },
    Split {
        pattern: Pattern,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    Sequence {
        pretokenizers: Vec<PreTokenizer>,
    },
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
    Regex(String),
}

impl File {
    /// The tokenizer that the file describes.
    pub(super) fn build(self) -> Result<Tokenizer, String> {
        let File { model, normalizer, pre_tokenizer, added_tokens } = self;
        let mut tokenizer = Tokenizer::new(model.build()?);
        if let Some(normalizer) = normalizer {
            let mut parts = Vec::new();
            normalizer.parts(&mut parts)?;
            tokenizer.with_normalizer(Some(Normalizers::new(parts)));
        }
        if let Some(pre_tokenizer) = pre_tokenizer {
            let mut parts = Vec::new();
            pre_tokenizer.parts(&mut parts)?;
            tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(parts)));
        }
        if added_tokens.len() > MAX_IDS as usize {
            return Err(format!("{} added tokens, more than {MAX_IDS}", added_tokens.len()));
        }
        tokenizer.add_tokens(&added_tokens);
        Ok(tokenizer)
    }
}

impl Model {
    fn build(self) -> Result<BPE, String> {
        let Model { kind: Some(Bpe::Bpe) | None, vocab, merges, ignore_merges, dropout, .. } = self;
        if let Some((token, id)) = vocab.iter().find(|&(_, &id)| id >= MAX_IDS) {
            return Err(format!("{token:?} has id {id}; ids end at {MAX_IDS}"));
        }
        if dropout.is_some_and(|rate| rate != 0.0) {
            return Err("it drops merges at random, which is for training".into());
        }
        let parts = [self.continuing_subword_prefix, self.end_of_word_suffix];
        if parts.into_iter().flatten().any(|part| !part.is_empty()) {
            return Err("it marks the parts of words, which byte-level BPE does not".into());
        }
        let pair = |merge| match merge {
            Merge::Pair(a, b) => Ok((a, b)),
            Merge::Line(line) => match line.split_once(' ') {
                Some((a, b)) => Ok((a.to_owned(), b.to_owned())),
                None => Err(format!("merge {line:?} is not two parts")),
            },
        };
        let merges = merges.into_iter().map(pair).collect::<Result<Vec<_>, _>>()?;
        let bpe = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(ignore_merges);
        bpe.build().map_err(|e| e.to_string())
    }
}

impl Normalizer {
    fn parts(self, out: &mut Vec<NormalizerWrapper>) -> Result<(), String> {
        match self {
            Normalizer::Nfc => out.push(NFC.into()),
            Normalizer::Nfd => out.push(NFD.into()),
            Normalizer::Nfkc => out.push(NFKC.into()),
            Normalizer::Nfkd => out.push(NFKD.into()),
            Normalizer::Sequence { normalizers } => {
                normalizers.into_iter().try_for_each(|part| part.parts(out))?;
            }
        }
        few(out.len())
    }
}

impl PreTokenizer {
    fn parts(self, out: &mut Vec<PreTokenizerWrapper>) -> Result<(), String> {
        match self {
            PreTokenizer::ByteLevel { add_prefix_space, use_regex } => {
                out.push(ByteLevel::new(add_prefix_space, true, use_regex).into());
            }
            PreTokenizer::Digits { individual_digits } => {
                out.push(Digits::new(individual_digits).into());
            }
            PreTokenizer::Split { pattern, behavior, invert } => {
                let split = match pattern {
                    Pattern::String(text) if text.is_empty() => {
                        return Err("it splits at an empty text".into());
                    }
                    Pattern::String(text) => Split::new(text, behavior, invert),
                    Pattern::Regex(regex) => {
                        check_regex(&regex)?;
                        Split::new(SplitPattern::Regex(regex), behavior, invert)
                    }
                };
                out.push(split.map_err(|e| e.to_string())?.into());
            }
            PreTokenizer::Sequence { pretokenizers } => {
                pretokenizers.into_iter().try_for_each(|part| part.parts(out))?;
            }
        }
        few(out.len())
    }
}

/// Checks what a regular expression may cost.
fn check_regex(regex: &str) -> Result<(), String> {
    if regex.len() > MAX_REGEX {
        return Err(format!("a regular expression of {} bytes", regex.len()));
    }
    // Numbers in braces, whatever else is between them: a letter's number makes this stricter than need
    // be, a comment in the middle of a repetition would make anything finer wrong.
    let braces = regex.split('{').skip(1).map(|rest| rest.split('}').next().unwrap_or(rest));
    let most = |text: &str| {
        let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
        numbers.map(|n| n.parse().unwrap_or(u64::MAX)).fold(1, u64::max)
    };
    match braces.map(most).fold(1, u64::saturating_mul) {
        0..=MAX_REPEATS => Ok(()),
        repeats => Err(format!("a regular expression that repeats {repeats} times")),
    }
}

fn few(parts: usize) -> Result<(), String> {
    match parts {
        0..=MAX_PARTS => Ok(()),
        _ => Err(format!("text goes through more than {MAX_PARTS} parts")),
    }
}
