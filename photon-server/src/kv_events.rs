//! Events of the key-value cache as vLLM publishes them, for routers that send a request to where its
//! beginning is cached.
//!
//! A PUB socket sends `[topic, sequence number, payload]`: eight bytes big-endian, and msgpack of
//! `[seconds since 1970, [event, ...], 0]`, where an event is an array that begins with its name. A ROUTER
//! socket gives what was missed: asked with the first number wanted, it sends the payloads it still has, and
//! at last the number -1.
//!
//! # Rules
//! - Numbers have no gaps: who sees one has missed something, and asks.
//! - What is published is kept for a time: [`KEPT`] payloads.
use std::{collections::VecDeque, io, net::SocketAddr, time::SystemTime};

use bytes::Bytes;
use photon::{CacheEvent, StoredBlocks};
use serde::Serialize;
use tokio::sync::mpsc::UnboundedReceiver;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv as _, SocketSend, ZmqMessage};

/// Payloads that can be had again.
const KEPT: usize = 10_000;
/// The number behind the last payload of a replay.
const END: [u8; 8] = (-1_i64).to_be_bytes();

/// Sockets with their ports open.
pub(crate) struct Publisher {
    events: PubSocket,
    replay: RouterSocket,
    address: SocketAddr,
    replay_address: SocketAddr,
    topic: Bytes,
}

impl Publisher {
    /// Opens the port, and the next one for replays; any two for port 0.
    pub(crate) async fn bind(address: SocketAddr, model: &str) -> io::Result<Self> {
        let (mut events, mut replay) = (PubSocket::new(), RouterSocket::new());
        let next = match address.port() {
            0 => 0,
            port => port.checked_add(1).ok_or(io::ErrorKind::InvalidInput)?,
        };
        let replay_address = SocketAddr::new(address.ip(), next);
        let address = bind(&mut events, address).await?;
        let replay_address = bind(&mut replay, replay_address).await?;
        let topic = Bytes::from(format!("kv@{address}@{model}"));
        Ok(Publisher { events, replay, address, replay_address, topic })
    }

    /// Where events, and where replays are to be had.
    pub(crate) fn addresses(&self) -> [SocketAddr; 2] {
        [self.address, self.replay_address]
    }

    /// Publishes until the engine is gone.
    pub(crate) async fn run(mut self, mut steps: UnboundedReceiver<Vec<CacheEvent>>) {
        let mut kept = Kept::default();
        loop {
            tokio::select! {
                step = steps.recv() => {
                    let Some(step) = step else { return };
                    let (number, payload) = kept.push(&step);
                    let frames = vec![self.topic.clone(), number, payload];
                    send(&mut self.events, frames).await;
                }
                asked = self.replay.recv() => match asked {
                    Ok(asked) => self.again(&asked, &kept).await,
                    Err(error) => tracing::info!(%error, "a replay was asked for in vain"),
                },
            }
        }
    }

    /// Sends what is kept from a number on.
    async fn again(&mut self, asked: &ZmqMessage, kept: &Kept) {
        let frames: Vec<&Bytes> = asked.iter().collect();
        // Who asks, an empty frame if it asks as REQ does, the number.
        let (Some(&who), Some(&first)) = (frames.first(), frames.last()) else { return };
        let Ok(first) = <[u8; 8]>::try_from(first.as_ref()) else { return };
        let all = kept.since(u64::from_be_bytes(first));
        for (number, payload) in all.chain([(Bytes::from_static(&END), Bytes::new())]) {
            let frames = vec![who.clone(), Bytes::new(), number, payload];
            send(&mut self.replay, frames).await;
        }
    }
}

async fn bind(socket: &mut impl Socket, address: SocketAddr) -> io::Result<SocketAddr> {
    let bound = socket.bind(&format!("tcp://{address}")).await;
    match bound.map_err(|error| io::Error::other(error.to_string()))? {
        zeromq::Endpoint::Tcp(_, port) => Ok(SocketAddr::new(address.ip(), port)),
        other => Err(io::Error::other(format!("bound to {other}"))),
    }
}

async fn send(socket: &mut impl SocketSend, frames: Vec<Bytes>) {
    let message = ZmqMessage::try_from(frames).expect("it has frames");
    if let Err(error) = socket.send(message).await {
        tracing::info!(%error, "an event of the cache was not sent");
    }
}

/// What was published last.
#[derive(Default)]
struct Kept {
    payloads: VecDeque<Bytes>,
    /// Of the next payload.
    next: u64,
}

impl Kept {
    /// Numbers a step's events.
    fn push(&mut self, step: &[CacheEvent]) -> (Bytes, Bytes) {
        let number = self.next.to_be_bytes().to_vec();
        let payload = payload(step);
        self.next += 1;
        self.payloads.push_back(payload.clone());
        if self.payloads.len() > KEPT {
            self.payloads.pop_front();
        }
        (number.into(), payload)
    }

    fn since(&self, first: u64) -> impl Iterator<Item = (Bytes, Bytes)> {
        let oldest = self.next - self.payloads.len() as u64;
        let skip = first.saturating_sub(oldest).min(self.payloads.len() as u64) as usize;
        let numbers = (oldest..).map(|number| Bytes::from(number.to_be_bytes().to_vec()));
        numbers.zip(self.payloads.iter().cloned()).skip(skip)
    }
}

/// As positional arrays, whose lengths are those that vLLM's readers know.
fn payload(step: &[CacheEvent]) -> Bytes {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let events: Vec<Event<'_>> = step.iter().map(Event::from).collect();
    let payload = rmp_serde::to_vec(&(now.as_secs_f64(), events, 0));
    payload.expect("writing to memory does not fail").into()
}

#[derive(Serialize)]
#[serde(untagged)]
enum Event<'a> {
    Stored(Stored<'a>),
    /// Name, blocks, medium.
    Removed(&'static str, &'a [u64], &'static str),
}

/// In the order in which they are written.
#[derive(Serialize)]
struct Stored<'a> {
    name: &'static str,
    hashes: &'a [u64],
    parent: Option<u64>,
    tokens: &'a [u32],
    block_size: usize,
    lora_id: Option<u32>,
    medium: &'static str,
    lora_name: Option<&'a str>,
    /// For each block the digests of its pictures.
    extra_keys: Option<Vec<Option<Vec<String>>>>,
}

/// Where blocks are. There is one place, and readers know it by this name.
const MEDIUM: &str = "GPU";

impl<'a> From<&'a CacheEvent> for Event<'a> {
    fn from(event: &'a CacheEvent) -> Self {
        let StoredBlocks { parent, hashes, tokens, block_size, adapter, pictures } = match event {
            CacheEvent::Stored(stored) => stored,
            CacheEvent::Removed(hashes) => return Event::Removed("BlockRemoved", hashes, MEDIUM),
        };
        let hex = |digest: &[u8; 32]| digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let extra = |digests: &Vec<[u8; 32]>| -> Option<Vec<String>> {
            (!digests.is_empty()).then(|| digests.iter().map(hex).collect())
        };
        let has_pictures = pictures.iter().any(|digests| !digests.is_empty());
        Event::Stored(Stored {
            name: "BlockStored",
            hashes,
            parent: *parent,
            tokens,
            block_size: *block_size,
            lora_id: adapter.as_ref().map(|(id, _)| *id),
            medium: MEDIUM,
            lora_name: adapter.as_ref().map(|(_, name)| name.as_ref()),
            extra_keys: has_pictures.then(|| pictures.iter().map(extra).collect()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_had_again_from_any_number_on() {
        let mut kept = Kept::default();
        for hash in 0..KEPT as u64 + 2 {
            kept.push(&[CacheEvent::Removed(vec![hash])]);
        }
        let numbers = |first| -> Vec<u64> {
            let number = |bytes: &Bytes| u64::from_be_bytes(bytes.as_ref().try_into().unwrap());
            kept.since(first).map(|(bytes, _)| number(&bytes)).collect()
        };
        let last = KEPT as u64 + 1;
        assert_eq!(numbers(0), (2..=last).collect::<Vec<_>>());
        assert_eq!(numbers(last), [last]);
        assert!(numbers(u64::MAX).is_empty());
    }
}
