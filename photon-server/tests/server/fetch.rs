//! Pictures from addresses: what is fetched, and what is not.
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use photon_server::Config;
use serde_json::{Value, json};

use crate::client::{Answer, PICTURE, TestServer};

/// A server of pictures on this machine; its thread ends with the process.
fn pictures() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            std::thread::spawn(move || give(socket.unwrap()));
        }
    });
    address
}

/// Answers one request by its path. Whoever asked may hang up at any time.
fn give(mut socket: TcpStream) {
    let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    while !lines.next().unwrap().unwrap().is_empty() {}
    let head =
        |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n");
    let _ = match first.split(' ').nth(1).unwrap() {
        "/star.png" => {
            let length = format!("Content-Length: {}\r\n", PICTURE.len());
            socket.write_all(&[head("200 OK", &length).as_bytes(), PICTURE].concat())
        }
        "/elsewhere" => socket.write_all(head("302 Found", "Location: /star.png\r\n").as_bytes()),
        // More than it says, and more than may be.
        "/large" => {
            let length = "Content-Length: 99999999\r\n";
            let _ = socket.write_all(head("200 OK", length).as_bytes());
            let piece = vec![0; 1 << 16];
            while socket.write_all(&piece).is_ok() {}
            Ok(())
        }
        "/slow" => {
            let _ = socket.write_all(head("200 OK", "Content-Length: 1000\r\n").as_bytes());
            while socket.write_all(b".").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        }
        "/text" => socket.write_all(head("200 OK", "Content-Length: 0\r\n").as_bytes()),
        _ => socket.write_all(head("404 Not Found", "Content-Length: 0\r\n").as_bytes()),
    };
}

fn config() -> Config {
    Config {
        fetch_hosts: vec!["127.0.0.1".into()],
        fetch_private: true,
        fetch_timeout: Duration::from_millis(600),
        ..super::config()
    }
}

fn detect(server: &TestServer, address: &str) -> Answer {
    let body = json!({ "object": "star", "image_url": address });
    server.post("/v1/detect", body.to_string().as_bytes())
}

#[test]
fn a_picture_is_fetched_from_a_host_that_is_allowed() {
    super::survives(config(), |server| {
        let answer = detect(server, &format!("http://{}/star.png", pictures()));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(answer["objects"].as_array().unwrap().len(), 1, "{answer}");
    });
}

#[test]
fn what_is_no_picture_is_given_up() {
    super::survives(config(), |server| {
        let pictures = pictures();
        for (path, status, why) in [
            ("elsewhere", 400, "status 302"),
            ("large", 413, "--max-image"),
            ("missing", 400, "status 404"),
            ("text", 400, "no image bytes"),
            ("slow", 400, "in time"),
        ] {
            let begun = Instant::now();
            let answer = detect(server, &format!("http://{pictures}/{path}"));
            let text = answer.text();
            assert_eq!(answer.status, status, "{path}: {text}");
            assert!(text.contains(why), "{path}: {text}");
            assert!(begun.elapsed() < Duration::from_secs(10), "{path} took too long");
        }
    });
}

#[test]
fn other_hosts_and_private_addresses_are_refused() {
    let star = format!("http://{}/star.png", pictures());
    let refuses = |config: Config, why: &str| {
        let answer = detect(&TestServer::start(config), &star);
        assert_eq!(answer.status, 403, "{}", answer.text());
        assert!(answer.text().contains(why), "{}", answer.text());
    };
    let hosts = |host: &str| vec![host.to_owned()];
    refuses(Config { fetch_hosts: hosts("example.org"), ..config() }, "does not fetch from");
    refuses(Config { fetch_private: false, ..config() }, "private network");
    refuses(
        Config { fetch_private: false, fetch_hosts: hosts("*"), ..config() },
        "private network",
    );
}
