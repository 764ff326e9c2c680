//! Adapters that take long to read.
use std::{
    path::Path,
    sync::mpsc::{Receiver, channel},
    thread::JoinHandle,
    time::Duration,
};

use super::*;
use crate::{
    CaptionLength, Model, ResizeOrder, Skill, Ticket, engine::setup::crop_config, model::Parts,
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Adapters whose reading ends when the test says so; those named `here` are.
#[derive(Debug)]
struct Slow {
    begun: Mutex<Sender<()>>,
    go: Mutex<Receiver<()>>,
}

impl LoadAdapters for Slow {
    fn find(&self, path: &Path) -> Result<Option<AdapterUse>, RunError> {
        Ok((path == Path::new("here")).then(|| AdapterUse::new(1, path, Arc::new(()))))
    }

    fn load(&self, path: &Path) -> Result<AdapterUse, RunError> {
        self.begun.lock().unwrap().send(()).unwrap();
        self.go.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        match path == Path::new("bad") {
            true => panic!("planted"),
            false => Ok(AdapterUse::new(2, path, Arc::new(()))),
        }
    }
}

struct Rig {
    queue: Arc<Queue>,
    inbox: Receiver<Message>,
    begun: Receiver<()>,
    go: Sender<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Rig {
    /// One worker, one thread that reads adapters, no engine: what is prepared stays.
    fn new() -> Self {
        let Parts { config, tokenizer, .. } = Model::Demo.open().unwrap();
        let tokenizer = Arc::new(tokenizer);
        let ((begins, begun), (go, goes)) = (channel(), channel());
        let setup = Setup {
            adapters: Arc::new(Slow { begun: Mutex::new(begins), go: Mutex::new(goes) }),
            crops: crop_config(&config, ResizeOrder::default()),
            config,
            grammars: Grammars::new(Arc::clone(&tokenizer)),
            tokenizer,
            max_waiting: 100,
            max_prepared: 100,
            max_pictures: 100,
            max_known: 1,
        };
        let (queue, inbox) = Queue::new(setup);
        let bodies: [fn(&Queue); 2] = [Queue::work, Queue::load_adapters];
        let threads = bodies.map(|body| {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || body(&queue))
        });
        Rig { queue, inbox, begun, go, threads: threads.into() }
    }

    fn submit(&self, adapter: Option<&str>) -> Ticket {
        let image = Image::from_rgb(60, 40, vec![200; 60 * 40 * 3]).unwrap();
        let skill = Skill::Caption { length: CaptionLength::Short };
        let adapter = adapter.map(Into::into);
        let (events, ticket) = Ticket::new();
        let request = Request { adapter, ..Request::new(skill, Some(image)) };
        self.queue.submit(request, events).unwrap();
        ticket
    }

    /// The adapter of the next request that is prepared.
    fn arrived(&self) -> Option<u32> {
        loop {
            match self.inbox.recv_timeout(PATIENCE).unwrap() {
                Message::Arrived(sequence) => return sequence.adapter.map(|adapter| adapter.id),
                Message::Wake => {}
            }
        }
    }

    fn end(self, how: Open) {
        self.queue.close(how);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn a_slow_adapter_keeps_only_those_waiting_who_ask_for_it() {
    let rig = Rig::new();
    let slow = rig.submit(Some("slow"));
    rig.begun.recv_timeout(PATIENCE).unwrap();
    // It is being read. Requests without an adapter, or with one that is here, go on.
    let others = [None, Some("here"), None].map(|adapter| rig.submit(adapter));
    assert_eq!([rig.arrived(), rig.arrived(), rig.arrived()], [None, Some(1), None]);
    assert!(!rig.queue.is_idle());
    rig.go.send(()).unwrap();
    assert_eq!(rig.arrived(), Some(2));
    drop((slow, others));
    rig.end(Open::Stopped("the test is over".into()));
}

#[test]
fn an_adapter_that_cannot_be_read_fails_its_request_alone() {
    let rig = Rig::new();
    let (bad, good) = (rig.submit(Some("bad")), rig.submit(None));
    rig.go.send(()).unwrap();
    assert_eq!(rig.arrived(), None);
    assert!(matches!(bad.wait(), Err(RunError::Bug(message)) if message.contains("planted")));
    drop(good);
    rig.end(Open::Stopped("the test is over".into()));
}

#[test]
fn the_end_waits_for_adapters_or_leaves_them() {
    let rig = Rig::new();
    let tickets = [Some("slow"), Some("slow"), None].map(|adapter| rig.submit(adapter));
    rig.begun.recv_timeout(PATIENCE).unwrap();
    rig.queue.close(Open::Draining);
    assert_eq!(rig.arrived(), None);
    for _ in 0..2 {
        rig.go.send(()).unwrap();
    }
    assert_eq!([rig.arrived(), rig.arrived()], [Some(2); 2]);
    for _ in 0..3 {
        rig.queue.release(1);
    }
    rig.end(Open::Draining);
    drop(tickets);

    let rig = Rig::new();
    let [first, second] = [Some("slow"), Some("slow")].map(|adapter| rig.submit(adapter));
    rig.begun.recv_timeout(PATIENCE).unwrap();
    rig.queue.close(Open::Stopped("now".into()));
    rig.go.send(()).unwrap();
    rig.end(Open::Stopped("now".into()));
    assert!(matches!(first.wait(), Err(RunError::Cancelled)));
    assert!(matches!(second.wait(), Err(RunError::Cancelled)));
}
