//! Grammars: which ids an answer may go on with.
//!
//! # Rules
//! - A grammar is compiled once, by a thread that prepares requests; a request gets a copy, whose lexer
//!   grows with its own text only, so that no answer depends on another.
//! - What compiling and following may cost is counted in steps of the parser, not by a clock: a grammar
//!   is refused everywhere or nowhere.
//! - Ids stand for bytes. An id that ends inside of a character may be drawn; what completes the character
//!   is all that may follow it.
//! - A control id is never allowed, but for the end where the text is complete.
//! - Text without alternatives is cut to ids as the tokenizer would.
use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use llguidance::{
    GrammarBuilder, JsonCompileOptions, Logger, Matcher, ParserFactory, TokenParser,
    api::{GrammarInit, ParserLimits, StopReason, TopLevelGrammar},
    earley::SlicedBiasComputer,
    panic_utils,
    toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv},
};
use photon_models::{config::Config, tokenizer::Tokenizer};
use serde_json::{Map, Value};

use crate::{Grammar, GrammarError};

/// Compiled grammars that are kept.
const MAX_KNOWN: usize = 64;
/// Bytes of the longest id that an answer under a grammar may have.
const MAX_TOKEN_BYTES: usize = 512;
/// Keywords of a schema with costs that grow with the square of what is under them, and how much may be in
/// a whole schema.
const MAX_NAMES: [(&str, usize); 2] = [("properties", 2000), ("patternProperties", 128)];
/// Characters of a message, which may quote expressions.
const MAX_MESSAGE: usize = 200;
/// Parts of a schema that are looked at to say which is wrong.
const MAX_PROBES: usize = 256;

fn limits() -> ParserLimits {
    ParserLimits {
        // A state of a lexer takes 1 to 2 kB: no request's grows beyond some 40 MB.
        max_lexer_states: 20_000,
        // It takes seconds for hostile expressions; without, each id of the answer pays its part.
        precompute_large_lexemes: false,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// The grammars that requests brought.
pub(crate) struct Grammars {
    tokenizer: Arc<Tokenizer>,
    /// The vocabulary as a tree of bytes, made when the first grammar comes.
    factory: OnceLock<ParserFactory>,
    known: Mutex<Vec<Known>>,
}

/// A grammar, and what became of it; who finds it being compiled waits for it.
type Known = (Grammar, Arc<OnceLock<Result<Guide, GrammarError>>>);

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Grammars { tokenizer, factory: OnceLock::new(), known: Mutex::default() }
    }

    /// Follows a grammar from its beginning.
    pub(crate) fn guide(&self, grammar: &Grammar, config: &Config) -> Result<Guide, GrammarError> {
        let bytes = grammar.text().len();
        if bytes > grammar.max_bytes() {
            return Err(GrammarError::TooLong {
                what: grammar.what(),
                bytes,
                max: grammar.max_bytes(),
            });
        }
        let compiled = self.entry(grammar);
        match compiled.get_or_init(|| self.compile(grammar, config)) {
            Ok(guide) => Ok(guide.copy()),
            Err(error) => Err(error.clone()),
        }
    }

    /// A grammar's place among the last ones asked for.
    fn entry(&self, grammar: &Grammar) -> Arc<OnceLock<Result<Guide, GrammarError>>> {
        // Nothing that can panic runs under the lock.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let at = known.iter().position(|(other, _)| other == grammar);
        let entry = at.map_or_else(|| (grammar.clone(), Arc::default()), |at| known.remove(at));
        let compiled = Arc::clone(&entry.1);
        known.push(entry);
        if known.len() > MAX_KNOWN {
            known.remove(0);
        }
        compiled
    }

    fn compile(&self, grammar: &Grammar, config: &Config) -> Result<Guide, GrammarError> {
        let what = grammar.what();
        let factory = self.factory.get_or_init(|| factory(&self.tokenizer, config));
        let init = match grammar {
            Grammar::JsonSchema(_) | Grammar::Json => {
                let schema: Value = serde_json::from_str(grammar.text())
                    .map_err(|error| GrammarError::NotJson(error.to_string()))?;
                for (keyword, max) in MAX_NAMES {
                    let count = names(&schema, keyword);
                    if count > max {
                        let why = format!("{count} {keyword} are too many, the most is {max}");
                        return Err(GrammarError::TooComplex { what, why });
                    }
                }
                let env = factory.tok_env();
                json(env, schema.clone()).map_err(|why| {
                    let mut blame = Blame { env, root: &schema, probes: 0 };
                    let (at, why) = blame.within(&schema, String::new(), why);
                    GrammarError::Schema { at, why }
                })?
            }
            Grammar::Regex(pattern) => {
                regex(factory.tok_env(), pattern).map_err(GrammarError::Regex)?
            }
        };
        let (logger, caps) = (Logger::new(0, 0), InferenceCapabilities::default());
        let parser = factory.create_parser_from_init_ext(init, logger, caps, limits());
        Guide::new(parser.map_err(|error| too_complex(what, &error))?, what)
    }
}

/// The vocabulary: each id's bytes, none for those that a grammar must not use.
fn factory(tokenizer: &Arc<Tokenizer>, config: &Config) -> ParserFactory {
    let ids = &config.tokenizer;
    let control = [
        ids.bos_id,
        ids.eos_id,
        ids.answer_id,
        ids.thinking_id,
        ids.coord_id,
        ids.size_id,
        ids.start_ground_points_id,
        ids.end_ground_id,
    ];
    let bytes_of = |id: u32| {
        let bytes = tokenizer.token_bytes(id);
        // Some tokenizers list their marks among the words. A byte of 0xff is in no text.
        let is_mark = bytes.starts_with(b"<|") && bytes.ends_with(b"|>");
        let is_text =
            bytes.len() <= MAX_TOKEN_BYTES && !bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER);
        if control.contains(&id) || is_mark || !is_text { Vec::new() } else { bytes.to_vec() }
    };
    let vocab_size = config.text.vocab_size as u32;
    let words: Vec<Vec<u8>> = (0..vocab_size).map(bytes_of).collect();
    let trie = TokTrie::from(&TokRxInfo::new(vocab_size, ids.eos_id), &words);
    let env: TokEnv = Arc::new(Vocabulary { tokenizer: Arc::clone(tokenizer), trie });
    let slices = SlicedBiasComputer::json_slices();
    ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
        .expect("the slices are regular expressions")
}

struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let ids = self.tokenizer.encode(text).unwrap_or_default();
            match self.trie.decode_raw(&ids) == text.as_bytes() {
                true => ids,
                false => self.trie.greedy_tokenize(text.as_bytes()),
            }
        })
    }
}

/// How much a keyword names, wherever it is.
fn names(schema: &Value, keyword: &str) -> usize {
    match schema {
        Value::Object(map) => {
            let here = map.get(keyword).and_then(Value::as_object).map_or(0, Map::len);
            here + map.values().map(|value| names(value, keyword)).sum::<usize>()
        }
        Value::Array(list) => list.iter().map(|value| names(value, keyword)).sum(),
        _ => 0,
    }
}

/// A schema as a grammar, or why it is none.
fn json(env: &TokEnv, schema: Value) -> Result<GrammarInit, String> {
    let mut schema = match schema {
        Value::Bool(true) => Value::Object(Map::new()),
        Value::Object(_) => schema,
        _ => return Err("a schema is an object".into()),
    };
    let options = JsonCompileOptions {
        item_separator: ", ".into(),
        key_separator: ": ".into(),
        // A model that does not know what to say would say blanks.
        whitespace_flexible: false,
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    build(env, TopLevelGrammar::from_json_schema(schema)).map_err(|why| match why {
        // The library's advice is about options that are not for requests to set.
        why if why.contains("coerce_one_of") => {
            "oneOf takes choices that cannot overlap; use anyOf".into()
        }
        why if why.contains("'referencing' feature") => {
            "$ref takes places in the schema itself, #/...".into()
        }
        why => why,
    })
}

/// A regular expression as a grammar, or why it is none.
fn regex(env: &TokEnv, pattern: &str) -> Result<GrammarInit, String> {
    let parse = |pattern| GrammarBuilder::new(None, limits()).regex.regex(pattern);
    // Parsed alone first, for a message about the pattern as it was given.
    if let Err(error) = parse(pattern) {
        let message = error.to_string();
        // The parser draws the pattern, indented by four, with a caret below it.
        let mut lines = message.lines();
        let caret = lines.find(|line| line.trim_start().starts_with('^'));
        let column = caret.and_then(|line| line.find('^')).map(|at| at.saturating_sub(3));
        let why = lines.find_map(|line| line.strip_prefix("error: "));
        return Err(match (column, why) {
            (Some(column), Some(why)) => format!("{why}, at character {column}"),
            _ => plain(&error),
        });
    }
    let pattern = if pattern.is_empty() { "(?:)" } else { pattern };
    build(env, TopLevelGrammar::from_regex(pattern))
}

fn build(env: &TokEnv, grammar: TopLevelGrammar) -> Result<GrammarInit, String> {
    let build = AssertUnwindSafe(|| {
        let built = GrammarInit::Serialized(grammar).to_internal(Some(env.clone()), limits());
        built.map(|(grammar, lexer)| GrammarInit::Internal(grammar, lexer))
    });
    panic_utils::catch_unwind(build).map_err(|error| plain(&error))
}

/// A message of the library on one line, without the state of its parser.
fn plain(error: &impl fmt::Display) -> String {
    let message = format!("{error:#}");
    let end = message.find("\n<").unwrap_or(message.len());
    let line = message[..end].lines().map(str::trim).collect::<Vec<_>>().join("; ");
    match line.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

fn too_complex(what: &'static str, error: &impl fmt::Display) -> GrammarError {
    GrammarError::TooComplex { what, why: plain(error) }
}

/// Looks for the innermost part of a schema that cannot be used.
struct Blame<'a> {
    env: &'a TokEnv,
    root: &'a Value,
    probes: usize,
}

impl Blame<'_> {
    /// Where in `part`, which is at `at`, and why; `part` itself if no part of it is wrong alone.
    fn within(&mut self, part: &Value, at: String, why: String) -> (String, String) {
        for (key, child) in children(part) {
            self.probes += 1;
            if self.probes > MAX_PROBES {
                break;
            }
            if let Err(why) = json(self.env, self.alone(child)) {
                return self.within(child, format!("{at}/{key}"), why);
            }
        }
        (at, why)
    }

    /// A part of the schema by itself, but for the definitions it may refer to.
    fn alone(&self, part: &Value) -> Value {
        let mut part = part.clone();
        if let Value::Object(map) = &mut part {
            for name in ["$schema", "$defs", "definitions"] {
                if let Some(definitions) = self.root.get(name) {
                    map.entry(name).or_insert_with(|| definitions.clone());
                }
            }
        }
        part
    }
}

/// The schemas right inside of a schema, and the ends of pointers to them.
fn children(schema: &Value) -> Vec<(String, &Value)> {
    let mut all = Vec::new();
    for (name, value) in schema.as_object().into_iter().flatten() {
        let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
        match (name.as_str(), value) {
            ("properties" | "patternProperties", Value::Object(map)) => {
                all.extend(
                    map.iter().map(|(key, child)| (format!("{name}/{}", escaped(key)), child)),
                );
            }
            ("prefixItems" | "anyOf" | "oneOf" | "allOf", Value::Array(list)) => {
                all.extend((0..).zip(list).map(|(i, child)| (format!("{name}/{i}"), child)));
            }
            ("items" | "additionalItems" | "additionalProperties", Value::Object(_)) => {
                all.push((name.clone(), value));
            }
            _ => {}
        }
    }
    all
}

/// A grammar followed to some place in a text.
pub(crate) struct Guide {
    matcher: Matcher,
    /// The ids that may come next: see [`photon_core::Masks`].
    mask: Vec<i32>,
    what: &'static str,
    spent: Duration,
}

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guide").field("what", &self.what).finish_non_exhaustive()
    }
}

impl Guide {
    fn new(parser: TokenParser, what: &'static str) -> Result<Self, GrammarError> {
        let matcher = Matcher::new(Ok(parser));
        let mut guide = Guide { matcher, mask: Vec::new(), what, spent: Duration::ZERO };
        guide.look_ahead()?;
        Ok(guide)
    }

    /// The same place, with a lexer of its own.
    fn copy(&self) -> Self {
        let (matcher, mask) = (self.matcher.deep_clone(), self.mask.clone());
        Guide { matcher, mask, what: self.what, spent: Duration::ZERO }
    }

    /// The ids that may come next.
    pub(crate) fn mask(&self) -> &[i32] {
        &self.mask
    }

    /// Goes on with an id of the mask. Whether the text is complete and nothing may follow.
    pub(crate) fn accept(&mut self, id: u32) -> Result<bool, GrammarError> {
        let begun = Instant::now();
        let accepted = self.matcher.consume_token(id);
        self.spent += begun.elapsed();
        accepted.map_err(|error| too_complex(self.what, &error))?;
        Ok(self.matcher.is_stopped())
    }

    /// Finds the ids that may come next.
    pub(crate) fn look_ahead(&mut self) -> Result<(), GrammarError> {
        let begun = Instant::now();
        let allowed = self.matcher.compute_mask();
        let allowed = allowed.map_err(|error| match plain(&error) {
            why if why == StopReason::NoExtensionBias.to_string() => {
                GrammarError::Nothing(self.what)
            }
            why => GrammarError::TooComplex { what: self.what, why },
        })?;
        let vocab_size = self.matcher.tok_env().expect("not failed").tok_trie().vocab_size();
        self.mask.clear();
        let words = allowed.as_slice().iter().take(vocab_size.div_ceil(32));
        self.mask.extend(words.map(|&word| word.cast_signed()));
        self.spent += begun.elapsed();
        Ok(())
    }

    /// Time spent since the last question.
    pub(crate) fn take_spent(&mut self) -> Duration {
        std::mem::take(&mut self.spent)
    }
}

#[cfg(test)]
mod tests {
    use photon_models::config::Family;

    use super::*;

    fn grammars() -> (Grammars, Config) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");
        let json = std::fs::read(format!("{folder}/config.json")).unwrap();
        let config = Config::from_json(&json, Family::Moondream2).unwrap();
        let tokenizer = Tokenizer::from_file(format!("{folder}/tokenizer.json").as_ref()).unwrap();
        (Grammars::new(Arc::new(tokenizer)), config)
    }

    fn allowed(guide: &Guide) -> Vec<u32> {
        let has = |&id: &u32| photon_core::sampler::mask_has(guide.mask(), id as usize);
        (0..guide.mask().len() as u32 * 32).filter(has).collect()
    }

    #[test]
    fn text_without_alternatives_is_cut_as_the_tokenizer_would() {
        let (grammars, config) = grammars();
        let text = "a red circle: \"größer\"";
        let mut guide = grammars.guide(&Grammar::Regex(text.into()), &config).unwrap();
        let mut ids = Vec::new();
        loop {
            let [id] = allowed(&guide)[..] else { panic!("{:?} after {ids:?}", allowed(&guide)) };
            ids.push(id);
            if guide.accept(id).unwrap() {
                break;
            }
            guide.look_ahead().unwrap();
        }
        assert_eq!(ids, grammars.tokenizer.encode(text).unwrap());
    }

    #[test]
    fn control_ids_take_no_part_and_the_end_where_it_may_be() {
        let (grammars, config) = grammars();
        let eos = config.tokenizer.eos_id;
        // The demo's vocabulary has its control ids as words; this expression would allow all of them.
        let any = Grammar::Regex("(?s:.*)".into());
        let mut guide = grammars.guide(&any, &config).unwrap();
        let ids = allowed(&guide);
        assert!(ids.contains(&eos) && ids.len() > 400, "{ids:?}");
        for id in ids.into_iter().filter(|&id| id != eos) {
            let bytes = grammars.tokenizer.token_bytes(id);
            assert!(!bytes.starts_with(b"<|"), "{id} is {:?}", String::from_utf8_lossy(bytes));
        }
        let id = grammars.tokenizer.encode("a").unwrap()[0];
        assert!(!guide.accept(id).unwrap());
        let mut guide = grammars.guide(&Grammar::Regex("ab?".into()), &config).unwrap();
        assert!(!allowed(&guide).contains(&eos));
        guide.accept(id).unwrap();
        guide.look_ahead().unwrap();
        assert!(allowed(&guide).contains(&eos));
    }

    #[test]
    fn half_a_character_is_followed_by_its_other_half() {
        let (grammars, config) = grammars();
        let mut guide = grammars.guide(&Grammar::Regex("(ä|ö)!".into()), &config).unwrap();
        let first = allowed(&guide);
        let bytes = |id: u32| grammars.tokenizer.token_bytes(id);
        let half = *first.iter().find(|&&id| bytes(id) == [0xc3]).expect("both begin with it");
        guide.accept(half).unwrap();
        guide.look_ahead().unwrap();
        assert!(allowed(&guide).iter().all(|&id| [0xa4, 0xb6].contains(&bytes(id)[0])));
    }

    #[test]
    fn a_grammar_is_compiled_once_and_the_last_ones_are_kept() {
        let (grammars, config) = grammars();
        let regex = |i: usize| Grammar::Regex(format!("a{{{i}}}"));
        let first = grammars.entry(&regex(0));
        grammars.guide(&regex(0), &config).unwrap();
        assert!(first.get().is_some_and(Result::is_ok));
        for i in 1..MAX_KNOWN {
            grammars.entry(&regex(i));
        }
        assert!(Arc::ptr_eq(&first, &grammars.entry(&regex(0))), "asked for again");
        for i in MAX_KNOWN..2 * MAX_KNOWN - 1 {
            grammars.entry(&regex(i));
        }
        assert!(Arc::ptr_eq(&first, &grammars.entry(&regex(0))), "the oldest of {MAX_KNOWN}");
        for i in 0..MAX_KNOWN {
            grammars.entry(&regex(1000 + i));
        }
        assert!(!Arc::ptr_eq(&first, &grammars.entry(&regex(0))), "forgotten");
    }

    #[test]
    fn a_copy_goes_its_own_way() {
        let (grammars, config) = grammars();
        let grammar = Grammar::Regex("[ab]c".into());
        let mut guide = grammars.guide(&grammar, &config).unwrap();
        let start = allowed(&guide);
        let id = grammars.tokenizer.encode("a").unwrap()[0];
        guide.accept(id).unwrap();
        guide.look_ahead().unwrap();
        assert_ne!(allowed(&guide), start);
        assert_eq!(allowed(&grammars.guide(&grammar, &config).unwrap()), start);
    }

    /// Grammars made to be expensive end with an error or are not expensive.
    #[test]
    fn hostile_grammars_are_refused_in_time() {
        let (grammars, config) = grammars();
        let object =
            |properties: &str| format!(r#"{{"type":"object","properties":{{{properties}}}}}"#);
        let many: Vec<_> = (0..1900).map(|i| format!(r#""k{i}":{{"type":"string"}}"#)).collect();
        let deep = "{\"items\":".repeat(100) + "{}" + &"}".repeat(100);
        let hostile = [
            Grammar::Regex("((a{1,1000}b{1,1000}){1,1000}){1,1000}".into()),
            Grammar::Regex("(a|b)*a(a|b){60}".into()),
            Grammar::Regex("(.*a.{200}b.*){20}".into()),
            Grammar::Regex(r"(\w{1,200} ){1,200}\p{L}{500}".into()),
            Grammar::Regex("[a-zA-Z_]+|x".repeat(1300)),
            Grammar::Regex("(a?b?c?d?)".repeat(1600)),
            Grammar::JsonSchema(object(&many.join(","))),
            Grammar::JsonSchema(r#"{"type":"string","minLength":100000}"#.into()),
            Grammar::JsonSchema(deep),
        ];
        for grammar in hostile {
            let begun = Instant::now();
            let guide = grammars.guide(&grammar, &config);
            let took = begun.elapsed();
            // Far above what was measured, for the sake of busy machines.
            assert!(
                took < Duration::from_secs(10),
                "{took:?} for {:?}",
                &grammar.text()[..60.min(grammar.text().len())]
            );
            let Ok(mut guide) = guide else { continue };
            for _ in 0..50 {
                let begun = Instant::now();
                let ids = allowed(&guide);
                if guide.accept(ids[ids.len() / 2]).is_err() || guide.look_ahead().is_err() {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(2));
            }
        }
    }
}
