//! HTTP/2 without a handshake before it, as gRPC's clients speak it on networks they trust.
use std::{sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{net::TcpStream, sync::watch, time::timeout};

use super::{MAX_HEAD_BYTES, Phase, TimedIo, answer};
use crate::Config;

/// Most requests of one connection at once; others wait.
const MAX_STREAMS: u32 = 128;
/// Bytes that a request, and all of a connection, may send before they are read: pictures come in few
/// round trips.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How long a client may take to agree that a connection ends.
const GOODBYE: Duration = Duration::from_secs(1);

pub(super) async fn serve(
    socket: TcpStream,
    router: Router,
    config: &Config,
    mut stop: watch::Receiver<bool>,
) {
    // For the socket it is always answering: of its clocks only that of writing runs.
    let io = TimedIo::new(socket, Arc::new(Phase::answering()), config);
    let under_way = watch::Sender::new(0_usize);
    let counter = under_way.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        answer(&router, request, Counted::new(&counter))
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Finds out about clients that went away without a word.
        .keep_alive_interval(config.idle_timeout)
        .keep_alive_timeout(config.stall_timeout)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stop.wait_for(|&stopping| stopping) => {}
        () = idle(under_way.subscribe(), config.idle_timeout) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection.as_mut() => {}
        () = idle(under_way.subscribe(), GOODBYE) => {}
    }
}

/// Ends when nothing was under way for a time.
async fn idle(mut under_way: watch::Receiver<usize>, limit: Duration) {
    // The sender lives as long as the connection.
    while under_way.wait_for(|&count| count == 0).await.is_ok() {
        if timeout(limit, under_way.wait_for(|&count| count > 0)).await.is_err() {
            return;
        }
    }
}

/// A request under way.
struct Counted(watch::Sender<usize>);

impl Counted {
    fn new(under_way: &watch::Sender<usize>) -> Self {
        under_way.send_modify(|count| *count += 1);
        Counted(under_way.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
