//! A server with the demo model, and a client that can misbehave.
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use photon::{Builder, Photon};
use photon_server::{Config, Handle, Server};
use serde_json::{Value, json};

pub(crate) const PICTURE: &[u8] = include_bytes!("../../../assets/shapes.png");

/// The sample picture as clients send it.
pub(crate) fn picture() -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(PICTURE))
}

pub(crate) struct TestServer {
    address: SocketAddr,
    #[cfg(feature = "grpc")]
    grpc: Option<SocketAddr>,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
    deadline: Duration,
}

impl TestServer {
    pub(crate) fn start(config: Config) -> Self {
        Self::with_engine(config, |builder| builder)
    }

    pub(crate) fn with_engine(config: Config, more: impl FnOnce(Builder) -> Builder) -> Self {
        let config = Config { listen: ([127, 0, 0, 1], 0).into(), ..config };
        let deadline = config.deadline;
        let photon = more(Photon::builder()).build().unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                let server = Server::bind(photon, config).await.unwrap();
                #[cfg(feature = "grpc")]
                let grpc = server.grpc_address();
                #[cfg(not(feature = "grpc"))]
                let grpc = ();
                send.send((server.addresses()[0], grpc, server.handle())).unwrap();
                server.run().await;
            });
        });
        let (address, grpc, handle) = receive.recv().unwrap();
        #[cfg(not(feature = "grpc"))]
        let () = grpc;
        let thread = Some(thread);
        TestServer {
            address,
            #[cfg(feature = "grpc")]
            grpc,
            handle,
            thread,
            deadline,
        }
    }

    /// Where it speaks gRPC.
    #[cfg(feature = "grpc")]
    pub(crate) fn grpc(&self) -> SocketAddr {
        self.grpc.expect("the configuration asks for it")
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits until the server has ended by itself.
    pub(crate) fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket
    }

    /// Sends bytes, takes an answer.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Answer {
        let mut socket = self.connect();
        // A server may answer and hang up before it has everything.
        let _ = socket.write_all(bytes);
        Answer::read(&mut socket)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\nConnection: close\r\n\r\n"
        );
        self.raw(request.as_bytes())
    }

    pub(crate) fn post(&self, path: &str, body: &[u8]) -> Answer {
        self.raw(&request(path, body))
    }

    /// Asks about a picture.
    pub(crate) fn ask_with(&self, path: &str, picture: &[u8], mut body: Value) -> Answer {
        body["image_url"] = STANDARD.encode(picture).into();
        self.post(path, body.to_string().as_bytes())
    }

    /// The next request is answered as it should.
    pub(crate) fn expect_right_answer(&self) {
        let answer = self.ask_with("/v1/detect", PICTURE, json!({ "object": "star" }));
        if self.deadline < Duration::from_millis(1) {
            assert_eq!(answer.status, 504, "{}", answer.text());
            return;
        }
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(answer["objects"].as_array().unwrap().len(), 1, "{answer}");
    }

    /// The engine's numbers once nothing runs.
    pub(crate) fn settled(&self) -> Value {
        let begun = Instant::now();
        loop {
            let status: Value = serde_json::from_slice(&self.get("/v1/status").body).unwrap();
            let engine = &status["engine"];
            if engine["running"] == 0 && engine["waiting"] == 0
                || begun.elapsed() > Duration::from_secs(30)
            {
                return engine.clone();
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.handle.stop();
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
        }
    }
}

/// The bytes of a request.
pub(crate) fn request(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

pub(crate) fn json_request(path: &str, body: &Value) -> Vec<u8> {
    request(path, body.to_string().as_bytes())
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads an answer up to its length, or to the end of the connection.
    pub(crate) fn read(socket: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        loop {
            if let Some(answer) = Answer::parse(&bytes) {
                return answer;
            }
            match socket.read(&mut piece) {
                Ok(n) if n > 0 => bytes.extend_from_slice(&piece[..n]),
                end => panic!("no whole answer ({end:?}): {}", String::from_utf8_lossy(&bytes)),
            }
        }
    }

    /// An answer, if it is whole.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let answer = Answer { status, head, body: bytes[end..].to_vec() };
        let length = answer.header("content-length")?.parse::<usize>().unwrap();
        (answer.body.len() >= length).then_some(answer)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (own, value) = line.split_once(':')?;
            own.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
