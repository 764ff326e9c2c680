//! Pulls from a hub on loopback: what is sent to whom, what ends up in the cache, and what the user
//! is told when it does not.
//!
//! No test reads the user's environment, cache or token, and none leaves the machine.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test, in helpers as well")]

mod server;

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use photon::hub::{
    Hub, HubError, KnownModel, ModelFiles, Progress, Step, WeightFiles, known_model, known_models,
};
use server::{Behavior, COMMIT, FakeFile, FakeHub, Reply, Server, TOKENIZER_COMMIT, sha256};
use tempfile::TempDir;

const MODEL: KnownModel = KnownModel {
    name: "moondream2",
    repo: "vikhyatk/moondream2",
    revision: "2025-06-21",
    weights: WeightFiles::Single("model.safetensors"),
    tokenizer_repo: "moondream/starmie-v1",
    tokenizer_revision: TOKENIZER_COMMIT,
};

/// Bytes that differ from place to place, so that a wrong offset cannot go unnoticed.
fn weights() -> Vec<u8> {
    (0..300_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// A hub with the files of [`MODEL`].
fn behavior() -> Behavior {
    let mut behavior = Behavior::default();
    let lfs = |bytes: Vec<u8>| FakeFile { bytes, lfs: true };
    let small = |bytes: &[u8]| FakeFile { bytes: bytes.to_vec(), lfs: false };
    behavior.files.insert("vikhyatk/moondream2/model.safetensors".to_owned(), lfs(weights()));
    behavior.files.insert("vikhyatk/moondream2/config.json".to_owned(), small(b"{\"config\": {}}"));
    behavior.files.insert("vikhyatk/moondream2/tokenizer.json".to_owned(), small(b"stale"));
    behavior.files.insert("moondream/starmie-v1/tokenizer.json".to_owned(), small(b"{\"v\": 1}"));
    let revision = (COMMIT.to_owned(), vec!["2025-06-21".to_owned()]);
    behavior.revisions.insert(MODEL.repo.to_owned(), revision);
    let revision = (TOKENIZER_COMMIT.to_owned(), vec!["main".to_owned()]);
    behavior.revisions.insert(MODEL.tokenizer_repo.to_owned(), revision);
    behavior
}

fn client(hub: &FakeHub, cache: &TempDir) -> Hub {
    Hub::new(cache.path()).with_endpoint(hub.url()).with_retries(3, Duration::ZERO)
}

fn pull(hub: &Hub) -> Result<ModelFiles, HubError> {
    hub.pull(&MODEL, &mut |_| {})
}

/// The message of a failed pull; always a single line.
fn failure(hub: &Hub, model: &KnownModel) -> String {
    let message = hub.pull(model, &mut |_| {}).unwrap_err().to_string();
    assert!(!message.contains('\n') && message.len() < 500, "{message}");
    message
}

fn check_files(files: &ModelFiles) {
    assert_eq!(files.weights.len(), 1);
    assert_eq!(fs::read(&files.weights[0]).unwrap(), weights());
    assert_eq!(fs::read(files.config.as_ref().unwrap()).unwrap(), b"{\"config\": {}}");
    assert_eq!(fs::read(&files.tokenizer).unwrap(), b"{\"v\": 1}");
    assert_eq!(files.revision, COMMIT);
}

fn repo_dir(cache: &TempDir) -> PathBuf {
    cache.path().join("models--vikhyatk--moondream2")
}

fn partial(cache: &TempDir) -> PathBuf {
    repo_dir(cache).join("blobs").join(format!("{}.incomplete", sha256(&weights())))
}

/// All blobs, finished or not, of the model's repository.
fn blob_names(cache: &TempDir) -> Vec<String> {
    let Ok(dir) = fs::read_dir(repo_dir(cache).join("blobs")) else { return Vec::new() };
    let mut names: Vec<String> =
        dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Puts a file into the cache the way Python does.
fn cache_like_python(
    cache: &Path,
    repo: &str,
    revision: &str,
    commit: &str,
    file: &str,
    text: &[u8],
) {
    let dir = cache.join(format!("models--{}", repo.replace('/', "--")));
    let (blob, snapshot) = (sha256(text), dir.join("snapshots").join(commit));
    fs::create_dir_all(dir.join("blobs")).unwrap();
    fs::create_dir_all(dir.join("refs")).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(dir.join("blobs").join(&blob), text).unwrap();
    fs::write(dir.join("refs").join(revision), commit).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(Path::new("../../blobs").join(&blob), snapshot.join(file)).unwrap();
    #[cfg(not(unix))]
    fs::copy(dir.join("blobs").join(&blob), snapshot.join(file)).unwrap();
}

#[test]
fn a_pull_fills_the_cache_in_the_layout_of_python() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    let files = pull(&client(&hub, &cache)).unwrap();
    check_files(&files);
    let dir = repo_dir(&cache);
    let file = dir.join("snapshots").join(COMMIT).join("model.safetensors");
    assert_eq!(files.weights, std::slice::from_ref(&file));
    assert_eq!(fs::read_to_string(dir.join("refs/2025-06-21")).unwrap(), COMMIT);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(file).unwrap(),
        Path::new("../../blobs").join(sha256(&weights())),
        "the link is relative, so that the cache can be moved"
    );
    let mut expect = vec![sha256(&weights()), server::git_sha1(b"{\"config\": {}}")];
    expect.sort();
    assert_eq!(blob_names(&cache), expect);
}

#[test]
fn a_complete_cache_is_used_without_a_request() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    let client = client(&hub, &cache);
    let files = pull(&client).unwrap();
    let before = hub.requests().len();
    assert_eq!(pull(&client).unwrap(), files);
    assert_eq!(client.find(&MODEL), Some(files));
    assert_eq!(hub.requests().len(), before);
}

#[test]
fn files_that_python_downloaded_are_found() {
    let cache = TempDir::new().unwrap();
    let client = Hub::new(cache.path()).with_offline(true);
    assert_eq!(client.find(&MODEL), None);
    let put = |repo, revision, commit, file, text: &[u8]| {
        cache_like_python(cache.path(), repo, revision, commit, file, text);
    };
    put(MODEL.repo, "2025-06-21", COMMIT, "model.safetensors", &weights());
    assert_eq!(client.find(&MODEL), None, "there is no tokenizer yet");
    put(MODEL.tokenizer_repo, "main", TOKENIZER_COMMIT, "tokenizer.json", b"{\"v\": 1}");
    let files = client.find(&MODEL).unwrap();
    assert_eq!(files.config, None);
    put(MODEL.repo, "2025-06-21", COMMIT, "config.json", b"{\"config\": {}}");
    check_files(&pull(&client).unwrap());
}

#[test]
fn a_repository_without_a_config_is_asked_for_it_only_once() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    hub.behavior.lock().unwrap().files.remove("vikhyatk/moondream2/config.json");
    let client = client(&hub, &cache);
    let files = pull(&client).unwrap();
    assert_eq!(files.config, None);
    let before = hub.requests().len();
    assert_eq!(pull(&client).unwrap(), files);
    assert_eq!(hub.requests().len(), before);
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    hub.behavior.lock().unwrap().cuts = vec![100_000, 50_000];
    check_files(&pull(&client(&hub, &cache)).unwrap());
    let ranges: Vec<Option<String>> =
        hub.storage_requests().iter().map(|r| r.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".to_owned()), Some("bytes=150000-".to_owned())]);
}

#[test]
fn a_pull_that_failed_is_resumed_by_the_next_one() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    hub.behavior.lock().unwrap().cuts = vec![100_000];
    let once = client(&hub, &cache).with_retries(1, Duration::ZERO);
    let message = failure(&once, &MODEL);
    assert!(
        message.starts_with("the download of model.safetensors stopped at 100000 of 1200000 bytes"),
        "{message}"
    );
    assert_eq!(fs::read(partial(&cache)).unwrap(), weights()[..100_000]);
    assert_eq!(once.find(&MODEL), None, "a part of a file is no file");

    let mut steps = Vec::new();
    let files = once
        .pull(&MODEL, &mut |p: Progress<'_>| {
            if p.file == "model.safetensors" {
                assert_eq!(p.total, 1_200_000);
                steps.push((p.step, p.done));
            }
        })
        .unwrap();
    check_files(&files);
    assert_eq!(steps[0], (Step::Resuming, 0));
    assert!(steps.contains(&(Step::Downloading, 100_000)), "{steps:?}");
    assert!(!steps.contains(&(Step::Downloading, 0)), "{steps:?}");
    assert_eq!(steps.last(), Some(&(Step::Done, 1_200_000)));
    assert_eq!(hub.storage_requests()[1].headers["range"], "bytes=100000-");
}

#[test]
fn a_server_that_ignores_range_is_read_from_the_beginning() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    {
        let mut behavior = hub.behavior.lock().unwrap();
        behavior.cuts = vec![100_000];
        behavior.ignore_range = true;
    }
    check_files(&pull(&client(&hub, &cache)).unwrap());
    assert_eq!(hub.storage_requests().len(), 2);
}

#[test]
fn a_server_that_refuses_ranges_is_read_from_the_beginning() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    {
        let mut behavior = hub.behavior.lock().unwrap();
        behavior.cuts = vec![100_000];
        behavior.refuse_range = true;
    }
    check_files(&pull(&client(&hub, &cache)).unwrap());
    assert_eq!(hub.storage_requests().len(), 3);
}

#[test]
fn a_server_that_always_breaks_at_the_same_byte_is_given_up_on() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    {
        let mut behavior = hub.behavior.lock().unwrap();
        behavior.cuts = vec![100_000; 50];
        behavior.ignore_range = true;
    }
    let message = failure(&client(&hub, &cache), &MODEL);
    assert!(message.contains("stopped at 100000 of 1200000"), "{message}");
    assert_eq!(hub.storage_requests().len(), 3);
}

#[test]
fn damaged_bytes_are_not_kept() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    let mut damaged = weights();
    damaged[777_777] ^= 1;
    hub.behavior.lock().unwrap().damaged = Some(damaged.clone());
    let client = client(&hub, &cache);
    let message = failure(&client, &MODEL);
    for part in ["model.safetensors", "SHA-256", &sha256(&weights()), &sha256(&damaged)] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(blob_names(&cache), [server::git_sha1(b"{\"config\": {}}")]);
    assert_eq!(client.find(&MODEL), None);

    hub.behavior.lock().unwrap().damaged = None;
    check_files(&pull(&client).unwrap());
}

#[test]
fn a_damaged_small_file_is_noticed_by_its_git_digest() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    let liar = Server::start(move |request| {
        let size = 9;
        let body = if request.method == "HEAD" { Vec::new() } else { b"not these".to_vec() };
        Reply { body, ..Reply::status(200) }
            .with("X-Repo-Commit", COMMIT)
            .with("ETag", format!("\"{}\"", server::git_sha1(b"but these")))
            .with("Content-Length", size)
    });
    let message = failure(&client(&hub, &cache).with_endpoint(liar.url()), &MODEL);
    assert!(message.starts_with("config.json arrived damaged"), "{message}");
    assert!(message.contains(&server::git_sha1(b"not these")), "{message}");
}

#[test]
fn a_partial_file_with_wrong_bytes_costs_one_more_download() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    fs::create_dir_all(partial(&cache).parent().unwrap()).unwrap();
    fs::write(partial(&cache), [0; 5000]).unwrap();
    check_files(&pull(&client(&hub, &cache)).unwrap());
    assert_eq!(hub.storage_requests().len(), 2);
}

#[test]
fn a_partial_file_that_is_too_long_is_dropped() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    fs::create_dir_all(partial(&cache).parent().unwrap()).unwrap();
    fs::write(partial(&cache), vec![0; 1_200_001]).unwrap();
    check_files(&pull(&client(&hub, &cache)).unwrap());
    assert_eq!(hub.storage_requests().len(), 1);
}

#[test]
fn a_partial_file_that_is_complete_is_only_checked() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    fs::create_dir_all(partial(&cache).parent().unwrap()).unwrap();
    fs::write(partial(&cache), weights()).unwrap();
    check_files(&pull(&client(&hub, &cache)).unwrap());
    assert_eq!(hub.storage_requests().len(), 0);
}

#[test]
fn a_blob_of_the_wrong_size_is_downloaded_again() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    let blob = repo_dir(&cache).join("blobs").join(sha256(&weights()));
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(&blob, b"cut short").unwrap();
    check_files(&pull(&client(&hub, &cache)).unwrap());
}

#[test]
fn more_bytes_than_announced_are_refused() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    let mut longer = weights();
    longer.extend_from_slice(b"and more");
    hub.behavior.lock().unwrap().damaged = Some(longer);
    let message = failure(&client(&hub, &cache), &MODEL);
    assert!(message.contains("sent more than the 1200000 bytes of model.safetensors"), "{message}");
}

#[test]
fn the_token_goes_to_the_endpoint_and_not_to_storage() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    hub.behavior.lock().unwrap().token = Some("hf_secret".to_owned());
    let client = client(&hub, &cache).with_token(Some("hf_secret".to_owned()));
    check_files(&pull(&client).unwrap());
    assert!(!hub.requests().is_empty());
    for request in hub.requests() {
        assert_eq!(request.headers["authorization"], "Bearer hf_secret", "{}", request.path);
    }
    assert!(!hub.storage_requests().is_empty());
    for request in hub.storage_requests() {
        assert!(!request.headers.contains_key("authorization"), "{}", request.path);
    }
    assert!(!format!("{client:?}").contains("hf_secret"));
}

#[test]
fn a_refused_login_says_whether_there_was_a_token() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    hub.behavior.lock().unwrap().token = Some("hf_secret".to_owned());
    let client = client(&hub, &cache);
    let message = failure(&client, &MODEL);
    assert!(message.contains("wants a login for vikhyatk/moondream2"), "{message}");
    assert!(message.contains("set HF_TOKEN"), "{message}");
    let message = failure(&client.clone().with_token(Some("hf_old".to_owned())), &MODEL);
    assert!(message.contains("rejected the access token"), "{message}");
    assert!(!message.contains("hf_old"), "{message}");
    let message = failure(&client.with_token(Some("hf\nold".to_owned())), &MODEL);
    assert!(message.contains("characters no token has"), "{message}");
}

#[test]
fn answers_of_the_hub_become_advice() {
    let cache = TempDir::new().unwrap();
    let check = |status: u16, expect: &str| {
        let hub = FakeHub::start(behavior());
        hub.behavior.lock().unwrap().failing = Some((u32::MAX, status));
        let message = failure(&client(&hub, &cache), &MODEL);
        assert!(message.contains(expect), "{status}: {message}");
    };
    check(403, "accept its terms");
    check(418, "answered HTTP 418 for config.json");
    check(503, "answered HTTP 503 for config.json: try again later");
}

#[test]
fn a_failure_that_passes_is_not_shown() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    hub.behavior.lock().unwrap().failing = Some((2, 503));
    check_files(&pull(&client(&hub, &cache)).unwrap());
}

#[test]
fn what_the_hub_does_not_have_is_named() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    let client = client(&hub, &cache);
    let message = failure(&client, &KnownModel { revision: "1999-01-01", ..MODEL });
    assert!(message.contains("no vikhyatk/moondream2 at revision 1999-01-01"), "{message}");
    let message = failure(&client, &KnownModel { repo: "nobody/nothing", ..MODEL });
    assert!(message.contains("no nobody/nothing at revision 2025-06-21"), "{message}");
    let weights = WeightFiles::Single("other.safetensors");
    let message = failure(&client, &KnownModel { weights, ..MODEL });
    assert!(message.contains("no other.safetensors in vikhyatk/moondream2"), "{message}");
}

#[test]
fn offline_uses_the_cache_and_nothing_else() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    let online = client(&hub, &cache);
    let offline = online.clone().with_offline(true);
    let message = failure(&offline, &MODEL);
    assert!(message.starts_with("model.safetensors of vikhyatk/moondream2 is not in"), "{message}");
    assert!(message.contains("run `photon pull moondream2` once"), "{message}");
    assert_eq!(hub.requests().len(), 0);
    pull(&online).unwrap();
    let before = hub.requests().len();
    check_files(&pull(&offline).unwrap());
    assert_eq!(hub.requests().len(), before);
}

#[test]
fn nobody_listening_is_reported_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let cache = TempDir::new().unwrap();
    let message = failure(&Hub::new(cache.path()).with_endpoint(url), &MODEL);
    assert!(message.starts_with("cannot reach 127.0.0.1 (connection refused)"), "{message}");
}

#[test]
fn a_silent_server_is_given_up_on() {
    // Connections are accepted by the kernel and never answered.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let cache = TempDir::new().unwrap();
    let client = Hub::new(cache.path())
        .with_endpoint(url)
        .with_timeout(Duration::from_millis(100))
        .with_retries(2, Duration::ZERO);
    let message = failure(&client, &MODEL);
    assert!(message.starts_with("127.0.0.1 did not answer within 0.1 s"), "{message}");
}

#[test]
fn a_file_without_certificates_is_named() {
    let (hub, dir) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    let path = dir.path().join("roots.pem");
    fs::write(&path, "no certificates here").unwrap();
    let home = dir.path().to_str().unwrap();
    let vars = [("SSL_CERT_FILE", path.to_str().unwrap()), ("HF_HOME", home)];
    let message = failure(&hub_from(&vars).with_endpoint(hub.url()), &MODEL);
    assert!(message.contains("roots.pem holds no PEM certificates"), "{message}");
    fs::remove_file(&path).unwrap();
    let message = failure(&hub_from(&vars), &MODEL);
    assert!(message.starts_with("cannot open") && message.contains("roots.pem"), "{message}");
}

#[test]
fn an_endpoint_that_is_no_hub_is_noticed() {
    let cache = TempDir::new().unwrap();
    let pages = Server::start(|_| Reply::status(200));
    let hub = Hub::new(cache.path());
    let message = failure(&hub.clone().with_endpoint(pages.url()), &MODEL);
    assert!(message.contains("sent no commit (X-Repo-Commit) for config.json"), "{message}");
    for bad in ["huggingface.co", "ftp://hub", "", "http://", "https://hub?x=1", "http://a b"] {
        let message = failure(&hub.clone().with_endpoint(bad), &MODEL);
        assert!(message.starts_with("HF_ENDPOINT"), "{bad}: {message}");
    }
    let circle = Server::start(|_| Reply::status(302).with("Location", "/again"));
    let message = failure(&hub.clone().with_endpoint(circle.url()), &MODEL);
    assert!(message.contains("redirected in circles"), "{message}");
    let nowhere = Server::start(|_| Reply::status(302).with("Location", "file:///etc/passwd"));
    let message = failure(&hub.with_endpoint(nowhere.url()), &MODEL);
    assert!(message.contains("not a secure URL"), "{message}");
}

#[test]
fn an_endpoint_may_have_a_path() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    hub.behavior.lock().unwrap().prefix = "/mirror/hf";
    let client = client(&hub, &cache).with_endpoint(format!("{}/mirror/hf/", hub.url()));
    check_files(&pull(&client).unwrap());
    assert!(hub.requests()[0].path.starts_with("/mirror/hf/vikhyatk/moondream2/resolve/"));
}

#[test]
fn too_large_a_file_is_refused_before_it_is_downloaded() {
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    let client = client(&hub, &cache);
    hub.behavior.lock().unwrap().claimed_size = Some(1 << 52);
    let message = failure(&client, &MODEL);
    assert!(message.starts_with("not enough disk space for model.safetensors"), "{message}");
    hub.behavior
        .lock()
        .unwrap()
        .files
        .get_mut("moondream/starmie-v1/tokenizer.json")
        .unwrap()
        .lfs = true;
    fs::remove_dir_all(cache.path().join("models--moondream--starmie-v1")).unwrap();
    let message = failure(&client, &MODEL);
    assert!(message.starts_with("tokenizer.json has 4503599627370496 bytes"), "{message}");
    assert_eq!(hub.storage_requests().len(), 0);
}

#[test]
fn two_pulls_at_once_download_once() {
    // Storage sends the weights only when one pull says that it waits for the other.
    let (waiting, has_waiter) = mpsc::channel();
    let has_waiter = Mutex::new(has_waiter);
    let hub = FakeHub::start_with(behavior(), move || {
        has_waiter.lock().unwrap().recv_timeout(Duration::from_secs(60)).unwrap();
    });
    let cache = TempDir::new().unwrap();
    let client = client(&hub, &cache);
    let run = |waiting: mpsc::Sender<()>| {
        client.pull(&MODEL, &mut |p| {
            if p.file == "model.safetensors" && p.step == Step::Waiting {
                waiting.send(()).unwrap();
            }
        })
    };
    let results = std::thread::scope(|scope| {
        let pulls = [(); 2].map(|()| {
            let waiting = waiting.clone();
            scope.spawn(move || run(waiting))
        });
        pulls.map(|pull| pull.join().unwrap().unwrap())
    });
    results.iter().for_each(check_files);
    assert_eq!(hub.storage_requests().len(), 1);
}

#[test]
fn shards_come_from_the_index_and_one_commit() {
    const SHARDED: KnownModel =
        KnownModel { weights: WeightFiles::Sharded("model.safetensors.index.json"), ..MODEL };
    let (hub, cache) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    let put = |name: &str, bytes: &[u8], lfs| {
        let file = FakeFile { bytes: bytes.to_vec(), lfs };
        let key = format!("vikhyatk/moondream2/{name}");
        hub.behavior.lock().unwrap().files.insert(key, file);
    };
    let index = |text: &str| put("model.safetensors.index.json", text.as_bytes(), false);
    index(
        r#"{"metadata": {}, "weight_map": {"a": "m-00002-of-00002.safetensors",
            "b": "m-00001-of-00002.safetensors", "c": "m-00002-of-00002.safetensors"}}"#,
    );
    put("m-00001-of-00002.safetensors", b"first", true);
    put("m-00002-of-00002.safetensors", b"second", true);
    let client = client(&hub, &cache);
    let files = client.pull(&SHARDED, &mut |_| {}).unwrap();
    let texts: Vec<Vec<u8>> = files.weights.iter().map(|p| fs::read(p).unwrap()).collect();
    assert_eq!(texts, [&b"first"[..], b"second"]);
    let asked = hub.requests();
    let by_name = asked.iter().filter(|r| r.path.contains("/resolve/2025-06-21/")).count();
    assert_eq!(by_name, 1, "all requests after the first name the commit");
    assert_eq!(client.find(&SHARDED), Some(files));

    let check = |text: &str, expect: &str| {
        fs::remove_dir_all(repo_dir(&cache)).unwrap();
        index(text);
        let message = failure(&client, &SHARDED);
        assert!(message.contains("is not a usable index") && message.contains(expect), "{message}");
    };
    check("{", "EOF");
    check(r#"{"weight_map": {}}"#, "names 0 shards");
    check(r#"{"weight_map": {"a": "../../escape.safetensors"}}"#, "is not the name of a shard");
    check(r#"{"weight_map": {"a": ".hidden.safetensors"}}"#, "is not the name of a shard");
    check(r#"{"weight_map": {"a": "https://x/y.safetensors"}}"#, "is not the name of a shard");
    check(r#"{"weight_map": {"a": "weights.bin"}}"#, "is not the name of a shard");
}

#[test]
fn known_models_are_found_by_name() {
    assert_eq!(known_model("Moondream2").unwrap(), &MODEL);
    assert_eq!(known_model("vikhyatk/moondream2").unwrap(), &MODEL);
    let message = known_model("gpt-2").unwrap_err().to_string();
    assert!(message.contains("moondream2, moondream3-preview, moondream3.1-9B-A2B"), "{message}");
    assert!(known_models().iter().all(|m| m.tokenizer_repo == "moondream/starmie-v1"));
}

/// A hub as the given variables describe it.
fn hub_from(vars: &[(&str, &str)]) -> Hub {
    Hub::from_vars(|name| {
        vars.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
    })
}

#[test]
fn the_cache_folder_is_the_one_python_uses() {
    let check = |vars: &[(&str, &str)], expect: Option<&str>| {
        assert_eq!(hub_from(vars).cache_dir(), expect.map(Path::new), "{vars:?}");
    };
    check(&[("HOME", "/home/u")], Some("/home/u/.cache/huggingface/hub"));
    check(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/xdg")], Some("/xdg/huggingface/hub"));
    check(&[("HF_HOME", "/hf"), ("XDG_CACHE_HOME", "/xdg")], Some("/hf/hub"));
    check(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/cache")], Some("/cache"));
    check(&[("HF_HOME", "~/hf"), ("HOME", "/home/u")], Some("/home/u/hf/hub"));
    check(&[("HF_HOME", ""), ("HOME", "/home/u")], Some("/home/u/.cache/huggingface/hub"));
    check(&[], None);
    assert!(failure(&hub_from(&[]), &MODEL).contains("set HF_HOME"));
}

#[test]
fn offline_is_what_python_takes_for_true() {
    for (value, expect) in [("1", true), ("true", true), ("ON", true), ("0", false), ("", false)] {
        assert_eq!(hub_from(&[("HF_HUB_OFFLINE", value)]).is_offline(), expect, "{value}");
    }
}

#[test]
fn endpoint_and_token_come_from_the_environment_or_the_token_file() {
    let (hub, home) = (FakeHub::start(behavior()), TempDir::new().unwrap());
    fs::write(home.path().join("token"), "hf_file\n").unwrap();
    fs::write(home.path().join("other"), "hf_other").unwrap();
    let (url, home_dir) = (hub.url(), home.path().to_str().unwrap());
    let other = home.path().join("other");
    let check = |vars: &[(&str, &str)], expect: Option<&str>| {
        let fixed = [("HF_ENDPOINT", url.as_str()), ("HF_HOME", home_dir)];
        let client = hub_from(&[&fixed, vars].concat());
        hub.behavior.lock().unwrap().failing = Some((1, 403));
        failure(&client, &MODEL);
        let seen = hub.requests().last().unwrap().headers.get("authorization").cloned();
        assert_eq!(seen, expect.map(|token| format!("Bearer {token}")), "{vars:?}");
    };
    check(&[], Some("hf_file"));
    check(&[("HF_TOKEN", " hf_env ")], Some("hf_env"));
    check(&[("HF_TOKEN_PATH", other.to_str().unwrap())], Some("hf_other"));
    check(&[("HF_TOKEN", "hf_env"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None);
    fs::remove_file(home.path().join("token")).unwrap();
    check(&[], None);
}
