//! What HTTP adds to the engine's own latency: `cargo bench -p photon-server`.
//!
//! One client, one engine. The same question about the same encoded picture goes to the engine and over a socket,
//! in turns, so that whatever else the machine does falls on both; what is printed are medians in milliseconds.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use photon::{ImageSource, Photon, Request, Skill};
use photon_server::{Config, Server};

const PICTURE: &[u8] = include_bytes!("../../assets/shapes.png");
const QUESTION: &str = "What color is the star?";
const ROUNDS: usize = 300;

fn main() -> Result<()> {
    let photon = Photon::builder().build()?;
    let address = serve(photon.clone())?;
    let body = serde_json::json!({
        "question": QUESTION, "image_url": STANDARD.encode(PICTURE), "settings": { "temperature": 0 },
    });
    let mut client = TcpStream::connect(address)?;
    client.set_nodelay(true)?;
    let (mut engine, mut http) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS + 20 {
        let begun = Instant::now();
        ask(&photon)?;
        let alone = begun.elapsed();
        let begun = Instant::now();
        post(&mut client, &body.to_string())?;
        let served = begun.elapsed();
        if round >= 20 {
            engine.push(alone.as_secs_f64() * 1000.0);
            http.push(served.as_secs_f64() * 1000.0);
        }
    }
    let mut added: Vec<f64> =
        http.iter().zip(&engine).map(|(http, engine)| http - engine).collect();
    println!("engine {:.3} ms, http {:.3} ms", median(&mut engine), median(&mut http));
    println!("http adds {:.3} ms (median of {ROUNDS} pairs)", median(&mut added));
    Ok(())
}

fn serve(photon: Photon) -> Result<SocketAddr> {
    let (send, receive) = mpsc::channel();
    let runtime = tokio::runtime::Runtime::new()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let config = Config { listen: ([127, 0, 0, 1], 0).into(), ..Config::default() };
            let server = Server::bind(photon, config).await.expect("a free port");
            send.send(server.addresses()[0]).expect("somebody waits");
            server.run().await;
        });
    });
    receive.recv().context("no server")
}

fn ask(photon: &Photon) -> Result<()> {
    let skill =
        Skill::Query { question: QUESTION.into(), reasoning: false, spatial_refs: Vec::new() };
    let mut request = Request::new(skill, Some(ImageSource::Encoded(PICTURE.to_vec())));
    request.sampling.temperature = 0.0;
    photon.run(&request, &mut |_| {})?;
    Ok(())
}

fn post(client: &mut TcpStream, body: &str) -> Result<()> {
    let head = format!(
        "POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let n = client.read(&mut piece)?;
        ensure!(n > 0, "the server hung up");
        bytes.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        ensure!(head.starts_with("HTTP/1.1 200"), "{text}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.context("no length")?.parse()? {
            return Ok(());
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
