use super::super::line::Code;
use super::*;

fn item(index: u64, line: &str) -> Item {
    Item { index, line: line.into(), too_long: false, image: None }
}

fn record(item: &Item, outcome: Outcome) -> Record {
    let id = line::id(&item.line);
    Record { line_index: item.index, id, image: None, outcome, input: item.digest("salt") }
}

fn ok() -> Outcome {
    let usage = Usage { input_tokens: 7, output_tokens: 2 };
    Outcome::Ok { result: serde_json::json!({"caption": "a"}), usage }
}

fn failure(code: Code, message: String) -> Outcome {
    Outcome::Error { error: LineError { code, message } }
}

const A: &str = r#"{"id": "a"}"#;
const B: &str = r#"{"id": "b"}"#;

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Scratch(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("out.jsonl")
    }

    fn open(&self) -> anyhow::Result<Journal> {
        Journal::open(&self.path(), Options::default())
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap()
    }
}

#[test]
fn a_result_has_the_keys_of_the_format() {
    let text = serde_json::to_string(&record(&item(3, A), ok())).unwrap();
    assert!(text.starts_with(
        r#"{"line_index":3,"id":"a","status":"ok","result":{"caption":"a"},"usage":{"input_tokens":7,"output_tokens":2},"input":""#
    ));
    let failed = failure(Code::UnknownSkill, "no".into());
    let text = serde_json::to_string(&record(&item(3, A), failed)).unwrap();
    assert!(text.contains(r#""status":"error","error":{"code":"unknown_skill","message":"no"}"#));
}

#[test]
fn a_cut_line_is_taken_off_and_whole_ones_are_remembered() {
    let scratch = Scratch::new();
    let mut journal = scratch.open().unwrap();
    journal.put(&record(&item(0, A), ok())).unwrap();
    journal.put(&record(&item(1, B), ok())).unwrap();
    drop(journal);
    let text = scratch.text();
    let first = text.find('\n').unwrap() + 1;
    for cut in first..text.len() {
        std::fs::write(scratch.path(), &text[..cut]).unwrap();
        let journal = scratch.open().unwrap();
        assert!(journal.has(&item(0, A), "salt").unwrap());
        assert!(!journal.has(&item(1, B), "salt").unwrap());
        assert_eq!(scratch.text(), text[..first]);
    }
}

#[test]
fn results_of_another_input_are_refused() {
    let scratch = Scratch::new();
    scratch.open().unwrap().put(&record(&item(0, A), ok())).unwrap();
    let journal = scratch.open().unwrap();
    let error = |result: anyhow::Result<bool>| result.unwrap_err().to_string();
    assert!(error(journal.has(&item(0, B), "salt")).contains(r#"has the id "a", the input "b""#));
    assert!(error(journal.has(&item(0, A), "other options")).contains("another request"));
    assert!(journal.check_len(1).is_ok());
    assert!(journal.check_len(0).unwrap_err().to_string().contains("the input has 0 lines"));
    drop(journal);
    std::fs::write(scratch.path(), "my diary\n").unwrap();
    assert!(scratch.open().unwrap_err().to_string().contains("line 1 is not a result"));
    // Nor is anything cut off that may be somebody's.
    for text in ["my diary", "{\"a\": 1}\nmy diary"] {
        std::fs::write(scratch.path(), text).unwrap();
        assert!(scratch.open().is_err());
        assert_eq!(scratch.text(), text);
    }
    let overwrite = Options { overwrite: true, ..Options::default() };
    assert!(Journal::open(&scratch.path(), overwrite).unwrap().is_fresh());
}

#[test]
fn results_without_a_digest_are_told_by_their_ids() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path(), "{\"line_index\":0,\"id\":\"a\",\"status\":\"ok\"}\n").unwrap();
    let journal = scratch.open().unwrap();
    assert!(journal.has(&item(0, A), "salt").unwrap());
    assert!(journal.has(&item(0, B), "salt").is_err());
}

#[test]
fn two_batches_do_not_write_one_file() {
    let scratch = Scratch::new();
    let _first = scratch.open().unwrap();
    assert!(scratch.open().unwrap_err().to_string().contains("by another photon batch"));
}

#[test]
fn failures_that_may_go_away_are_forgotten_on_demand() {
    let scratch = Scratch::new();
    let mut journal = scratch.open().unwrap();
    journal.put(&record(&item(0, A), failure(Code::ProcessingError, "no".into()))).unwrap();
    journal.put(&record(&item(1, B), failure(Code::UnknownSkill, "no".into()))).unwrap();
    assert_eq!(journal.failed(), 0, "counts what was there before");
    drop(journal);
    assert_eq!(scratch.open().unwrap().failed(), 2);
    let retry = Options { retry_failed: true, ..Options::default() };
    let mut journal = Journal::open(&scratch.path(), retry).unwrap();
    assert!(!journal.has(&item(0, A), "salt").unwrap());
    assert!(journal.has(&item(1, B), "salt").unwrap());
    // The file that took the name is locked, too.
    assert!(scratch.open().is_err());
    journal.put(&record(&item(0, A), ok())).unwrap();
    let lines = scratch.text();
    let indexes: Vec<&str> = lines.lines().map(|line| &line[..15]).collect();
    assert_eq!(indexes, [r#"{"line_index":1"#, r#"{"line_index":0"#]);
}

#[test]
fn ordered_results_wait_for_those_before_them() {
    let scratch = Scratch::new();
    let options = Options { ordered: true, ..Options::default() };
    let mut journal = Journal::open(&scratch.path(), options).unwrap();
    journal.put(&record(&item(3, A), ok())).unwrap();
    journal.put(&record(&item(1, A), ok())).unwrap();
    journal.pass(2).unwrap();
    assert_eq!(scratch.text(), "");
    journal.put(&record(&item(0, A), ok())).unwrap();
    let lines = scratch.text();
    let indexes: Vec<&str> = lines.lines().map(|line| &line[14..15]).collect();
    assert_eq!(indexes, ["0", "1", "3"]);
}
