//! Sockets: how long each part of a conversation may take.
//!
//! HTTP/1.1, or HTTP/2 where gRPC is spoken. Three clocks run: a request's head must be complete some
//! seconds after its first byte, an idle connection is closed after a longer time, and a client that does
//! not read what it asked for is dropped. Heads of HTTP/2 come among frames of other requests: they have
//! the idle connection's clock. The body's clock is where it is read, in `body` and `kserve::grpc`.
#[cfg(feature = "grpc")]
mod http2;

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, http::Response};
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
    time::{Instant, Sleep, sleep},
};
use tower::ServiceExt as _;

use crate::Config;

/// Most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    #[cfg(feature = "grpc")]
    Grpc,
}

/// Serves one connection until either side ends it. When `stop` changes, what is under way is answered
/// and then the connection is closed.
pub(crate) async fn serve(
    socket: TcpStream,
    protocol: Protocol,
    router: Router,
    config: &Config,
    stop: watch::Receiver<bool>,
) {
    match protocol {
        Protocol::Http => serve_http1(socket, router, config, stop).await,
        #[cfg(feature = "grpc")]
        Protocol::Grpc => http2::serve(socket, router, config, stop).await,
    }
}

async fn serve_http1(
    socket: TcpStream,
    router: Router,
    config: &Config,
    mut stop: watch::Receiver<bool>,
) {
    let phase = Arc::new(Phase::default());
    let io = TimedIo::new(socket, Arc::clone(&phase), config);
    let service = service_fn(move |request: Request<Incoming>| {
        phase.set(Phase::ANSWERING);
        answer(&router, request, Ended(Arc::clone(&phase)))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.idle_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    // Whatever ends a connection concerns its client alone, who knows.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stop.wait_for(|&stopping| stopping) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Answers a request; `ended` is dropped when the answer is gone, however it went.
fn answer<E>(
    router: &Router,
    request: Request<Incoming>,
    ended: E,
) -> impl Future<Output = Result<Response<Answer<E>>, Infallible>> + use<E> {
    let answer = router.clone().oneshot(request.map(Body::new));
    async move {
        answer.await.map(|response: Response<Body>| response.map(|body| Answer { body, ended }))
    }
}

/// What a connection is at, told by the service to the socket.
#[derive(Debug, Default)]
struct Phase(AtomicU8);

impl Phase {
    const IDLE: u8 = 0;
    const HEAD: u8 = 1;
    const ANSWERING: u8 = 2;

    #[cfg(feature = "grpc")]
    fn answering() -> Self {
        Phase(AtomicU8::new(Phase::ANSWERING))
    }

    fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::Relaxed);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Says that a connection is idle again.
struct Ended(Arc<Phase>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.set(Phase::IDLE);
    }
}

/// An answer's body.
struct Answer<E> {
    body: Body,
    #[expect(dead_code, reason = "its drop is its use")]
    ended: E,
}

impl<E: Unpin> HttpBody for Answer<E> {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket with clocks.
struct TimedIo {
    socket: TcpStream,
    phase: Arc<Phase>,
    header_timeout: Duration,
    write_timeout: Duration,
    head: Pin<Box<Sleep>>,
    write: Option<Pin<Box<Sleep>>>,
}

impl TimedIo {
    fn new(socket: TcpStream, phase: Arc<Phase>, config: &Config) -> Self {
        TimedIo {
            socket,
            phase,
            header_timeout: config.header_timeout,
            write_timeout: config.stall_timeout,
            head: Box::pin(sleep(config.header_timeout)),
            write: None,
        }
    }

    /// Runs the clock of a write that had to wait.
    fn stalled<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write = None;
            return written;
        }
        let timeout = self.write_timeout;
        let clock = self.write.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(clock.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl AsyncRead for TimedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.socket).poll_read(cx, buf);
        if read.is_ready() {
            if this.phase.get() == Phase::IDLE && buf.filled().len() > before {
                this.phase.set(Phase::HEAD);
                this.head.as_mut().reset(Instant::now() + this.header_timeout);
            }
            return read;
        }
        if this.phase.get() == Phase::HEAD {
            ready!(this.head.as_mut().poll(cx));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "a slow request")));
        }
        Poll::Pending
    }
}

impl AsyncWrite for TimedIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.stalled(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bytes);
        self.stalled(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
