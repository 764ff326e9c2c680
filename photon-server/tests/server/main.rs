//! What clients do wrong, on purpose or not: after each the server answers the next request as if nothing
//! had happened, and the engine holds nothing that it did not hold before.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]

mod client;
mod fetch;
#[cfg(feature = "grpc")]
mod grpc;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use client::{Answer, PICTURE, TestServer, json_request, picture};
use photon_server::{Config, MetricsPrefix};
use serde_json::{Value, json};

fn config() -> Config {
    Config {
        header_timeout: Duration::from_millis(400),
        stall_timeout: Duration::from_millis(400),
        idle_timeout: Duration::from_secs(20),
        max_body_bytes: 1 << 20,
        max_image_bytes: 1 << 19,
        ..Config::default()
    }
}

/// Runs `abuse`, then checks that the server is as before.
fn survives(config: Config, abuse: impl FnOnce(&TestServer)) {
    let server = TestServer::start(config);
    server.expect_right_answer();
    let before = server.settled();
    abuse(&server);
    server.expect_right_answer();
    let after = server.settled();
    for held in ["running", "waiting"] {
        assert_eq!(after[held], 0, "{held}: {after}");
    }
    let free = |stats: &Value| {
        stats["blocks_free"].as_u64().unwrap() + stats["blocks_cached"].as_u64().unwrap()
    };
    assert_eq!(free(&before), free(&after), "blocks are held by nobody");
}

#[test]
fn json_that_is_none_or_too_deep() {
    survives(config(), |server| {
        let deep = "[".repeat(100_000);
        let closed = format!("{deep}{}", "]".repeat(100_000));
        let half = format!("{{\"question\": {deep}");
        for body in [
            deep.as_bytes(),
            closed.as_bytes(),
            half.as_bytes(),
            b"\xff\xfe",
            b"",
            b"{\"question\": \"\\ud800\"}",
        ] {
            let answer = server.post("/v1/query", body);
            assert_eq!(answer.status, 400, "{}", answer.text());
        }
        let answer = server.post("/v1/query", b"{\"question\": \"\xff\"}");
        assert_eq!(answer.status, 400);
    });
}

#[test]
fn bodies_that_are_too_large_are_refused_before_they_are_read() {
    survives(config(), |server| {
        // It says so.
        let head = "POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n";
        assert_eq!(server.raw(head.as_bytes()).status, 413);
        // It does not say so.
        let mut socket = server.connect();
        socket
            .write_all(b"POST /v1/query HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            .unwrap();
        let chunk = [b"10000\r\n".to_vec(), vec![b'x'; 0x10000], b"\r\n".to_vec()].concat();
        for _ in 0..64 {
            if socket.write_all(&chunk).is_err() {
                break;
            }
        }
        assert_eq!(Answer::read(&mut socket).status, 413);
    });
}

#[test]
fn a_storm_of_tiny_chunks() {
    survives(config(), |server| {
        let mut socket = server.connect();
        socket
            .write_all(b"POST /v1/query HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            .unwrap();
        let storm = "1\r\n \r\n".repeat(50_000);
        socket.write_all(storm.as_bytes()).unwrap();
        socket.write_all(b"0\r\n\r\n").unwrap();
        assert_eq!(Answer::read(&mut socket).status, 400);
    });
}

#[test]
fn pictures_that_are_bombs() {
    survives(config(), |server| {
        // A header that claims 60,000 x 60,000 pixels, without any.
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        png.extend([60_000_u32.to_be_bytes(), 60_000_u32.to_be_bytes()].concat());
        png.extend([8, 2, 0, 0, 0, 0, 0, 0, 0]);
        let answer = server.ask_with("/v1/caption", &png, json!({}));
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert_eq!(server.ask_with("/v1/caption", &[0; 1 << 19 | 1], json!({})).status, 413);
        assert_eq!(server.ask_with("/v1/caption", b"GIF89a", json!({})).status, 400);
    });
}

#[test]
fn slow_heads_and_bodies_are_given_up() {
    survives(config(), |server| {
        let begun = Instant::now();
        // The head, a byte at a time.
        let mut socket = server.connect();
        for byte in b"POST /v1/query HTTP/1.1\r\nHost: slow" {
            if socket.write_all(&[*byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(40));
        }
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
        assert!(begun.elapsed() < Duration::from_secs(10), "a slow head was waited for");
        // The body, never.
        let mut socket = server.connect();
        socket
            .write_all(b"POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            .unwrap();
        assert_eq!(Answer::read(&mut socket).status, 408);
    });
}

#[test]
fn half_closed_and_idle_sockets_cost_nobody_anything() {
    survives(config(), |server| {
        // Both ends are open files of this process.
        let files = rlimit::increase_nofile_limit(u64::MAX).unwrap();
        let count = 5000.min(usize::try_from(files / 2).unwrap() - 100);
        let idle: Vec<TcpStream> = (0..count).map(|_| server.connect()).collect();
        for socket in &idle[..count / 2] {
            socket.shutdown(Shutdown::Write).unwrap();
        }
        server.expect_right_answer();
        drop(idle);
    });
}

#[test]
fn a_client_that_goes_away_cancels_at_every_token() {
    survives(config(), |server| {
        for tokens in 0..12 {
            let body = json!({ "image_url": picture(), "length": "long", "stream": true });
            let mut socket = server.connect();
            socket.write_all(&json_request("/v1/caption", &body)).unwrap();
            let mut seen = String::new();
            let mut piece = [0; 64];
            while seen.matches("\"chunk\"").count() < tokens {
                let n = socket.read(&mut piece).unwrap();
                assert_ne!(n, 0, "{seen}");
                seen.push_str(&String::from_utf8_lossy(&piece[..n]));
            }
            drop(socket);
        }
    });
}

#[test]
fn whoever_does_not_read_is_dropped() {
    survives(config(), |server| {
        let sockets: Vec<TcpStream> = (0..8)
            .map(|_| {
                let body = json!({ "image_url": picture(), "length": "long", "stream": true });
                let mut socket = server.connect();
                socket.write_all(&json_request("/v1/caption", &body)).unwrap();
                socket
            })
            .collect();
        server.expect_right_answer();
        drop(sockets);
    });
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let server = TestServer::with_engine(config(), |builder| builder.max_seqs(1).max_waiting(2));
    let body = json!({ "image_url": picture(), "length": "long" });
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let ask = || server.post("/v1/caption", body.to_string().as_bytes());
        let asking: Vec<_> = (0..24).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    let busy: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(!busy.is_empty() && busy.len() < answers.len(), "{} busy", busy.len());
    for answer in busy {
        assert_eq!(answer.status, 429, "{}", answer.text());
        assert!(answer.header("retry-after").is_some());
    }
    server.expect_right_answer();
}

#[test]
fn a_deadline_that_passed_is_504() {
    survives(Config { deadline: Duration::from_micros(1), ..config() }, |_| {});
}

#[test]
fn keys_are_asked_for_where_it_costs() {
    let config = Config { api_keys: vec!["secret".into()], ..config() };
    let server = TestServer::start(config);
    for path in ["/v1/query", "/v1/chat/completions", "/api/chat", "/v2/models/demo/infer"] {
        assert_eq!(server.post(path, b"{}").status, 401, "{path}");
    }
    for path in ["/health", "/metrics", "/v1/status", "/"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let head = "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    assert_eq!(server.raw(format!("{head}\r\n").as_bytes()).status, 401);
    for key in ["X-Moondream-Auth: secret", "Authorization: Bearer secret"] {
        assert_eq!(server.raw(format!("{head}{key}\r\n\r\n").as_bytes()).status, 200, "{key}");
    }
}

#[test]
fn a_server_that_is_told_to_stop_ends_what_is_under_way() {
    let server = TestServer::start(config());
    let body = json!({ "image_url": picture(), "length": "long", "stream": true });
    let mut socket = server.connect();
    socket.write_all(&json_request("/v1/caption", &body)).unwrap();
    let mut first = [0; 16];
    socket.read_exact(&mut first).unwrap();
    server.handle().stop();
    let mut rest = String::new();
    socket.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"completed\":true") && rest.contains("finish_reason"), "{rest}");
    server.join();
}

#[test]
fn the_page_may_load_nothing_from_elsewhere() {
    let server = TestServer::start(config());
    for path in ["/", "/status", "/page/app.js", "/page/style.css", "/page/sample.png"] {
        let answer = server.get(path);
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-security-policy").unwrap().contains("default-src 'none'"));
        let text = answer.text().to_lowercase();
        let outside = text.matches("http://").count()
            - text.matches("http://www.w3.org").count()
            - text.matches("http://localhost").count();
        assert_eq!(outside + text.matches("https://").count(), 0, "{path} names other servers");
    }
    // The crate has a copy, because a published one has no other folder.
    assert!(server.get("/page/sample.png").body == PICTURE, "not assets/shapes.png");
}

#[test]
fn metrics_have_the_names_and_labels_that_gateways_read() {
    let config = Config { metrics_prefix: MetricsPrefix::Vllm, ..config() };
    let server = TestServer::with_engine(config, |builder| builder.adapter_slots(2));
    server.expect_right_answer();
    let text = server.get("/metrics").text();
    let value = |name: &str, labels: &str| -> f64 {
        let own = r#"model_name="demo",engine="0""#;
        let begin = format!("vllm:{name}{{{own}{labels}}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&begin));
        line.unwrap_or_else(|| panic!("no {begin}in {text}")).parse().unwrap()
    };
    assert_eq!(value("num_requests_running", "") + value("num_requests_waiting", ""), 0.0);
    assert!((0.0..=1.0).contains(&value("kv_cache_usage_perc", "")));
    assert!(value("prefix_cache_queries_total", "") > 20.0, "positions of a prompt, not prompts");
    assert!(value("generation_tokens_total", "") > 0.0);
    assert_eq!(value("time_to_first_token_seconds_count", ""), 1.0);
    let blocks: Value = server.settled()["blocks"].clone();
    let shape = format!(r#",block_size="16",num_gpu_blocks="{blocks}""#);
    assert_eq!(value("cache_config_info", &shape), 1.0);
    let adapters = r#",max_lora="2",running_lora_adapters="",waiting_lora_adapters="""#;
    assert!(value("lora_requests_info", adapters) > 1e9, "a time");
}
