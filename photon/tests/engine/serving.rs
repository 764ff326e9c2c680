//! The engine as something that runs for long: cancellation, limits, memory, the end.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use photon::{
    Budget, CaptionLength, EngineOptions, Event, Image, ImageSource, Photon, Request, RunError,
    Shutdown, Skill, SkillEvent,
};

use crate::{Rng, pictures};

fn caption() -> Skill {
    Skill::Caption { length: CaptionLength::Short }
}

fn query(question: &str) -> Skill {
    Skill::Query { question: question.into(), reasoning: false, spatial_refs: vec![] }
}

/// A request that goes on for long if nobody stops it.
fn endless() -> Request {
    Request { forced_tokens: Some(400), ..Request::new(query("?"), None::<Image>) }
}

fn resident_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? * 1024)
}

/// Whether a test runs in a process of its own; the first call starts that and waits for it. What a process
/// holds in memory says nothing while other tests run in it.
fn is_alone(test: &str) -> bool {
    const ALONE: &str = "PHOTON_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", test]).env(ALONE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

#[test]
fn memory_returns_after_a_thousand_requests_with_cancellations() {
    if !is_alone("serving::memory_returns_after_a_thousand_requests_with_cancellations") {
        return;
    }
    let photon = Photon::builder().build().unwrap();
    let (pictures, mut rng) = (pictures(), Rng(3));
    let mut measured = None;
    for round in 0..20 {
        let mut tickets = Vec::new();
        for _ in 0..50 {
            let picture = pictures[rng.below(pictures.len())].clone();
            let budget = Budget { max_tokens: 1 + rng.below(30), max_objects: 5 };
            let request = Request { budget, ..Request::new(caption(), Some(picture)) };
            tickets.push((photon.submit(request).unwrap(), rng.below(12)));
        }
        for (mut ticket, events) in tickets {
            // Some are dropped at once, some after a few events, some run to the end.
            match events {
                0..6 => drop(ticket.by_ref().take(events).count()),
                _ => drop(ticket.wait().unwrap()),
            }
        }
        if round == 4 {
            measured = resident_bytes();
        }
    }
    // The engine notices the last cancellations on its own.
    let begun = Instant::now();
    while photon.stats().running + photon.stats().waiting > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", photon.stats());
        std::thread::yield_now();
    }
    let stats = photon.stats();
    assert_eq!(stats.blocks_free + stats.blocks_cached, stats.blocks, "{stats:?}");
    if let (Some(before), Some(after)) = (measured, resident_bytes()) {
        let grown = after.saturating_sub(before);
        assert!(grown < 8 << 20, "{grown} bytes more after 750 requests");
    }
}

#[test]
fn a_dropped_ticket_makes_room() {
    let photon = Photon::builder().max_seqs(1).build().unwrap();
    let mut first = photon.submit(endless()).unwrap();
    assert!(matches!(first.next(), Some(Ok(Event::Skill(_)))));
    let second = photon.submit(Request::new(query("1 + 1?"), None::<Image>)).unwrap();
    drop(first);
    second.wait().unwrap();
}

#[test]
fn a_full_queue_says_so_and_loses_nothing() {
    let options = EngineOptions {
        max_seqs: Some(1),
        max_waiting: Some(2),
        workers: Some(1),
        ..EngineOptions::default()
    };
    let photon = Photon::builder().options(options).build().unwrap();
    let mut taken = Vec::new();
    let refused = loop {
        match photon.submit(endless()) {
            Ok(ticket) => taken.push(ticket),
            Err(error) => break error,
        }
        assert!(taken.len() < 100, "nothing was refused");
    };
    assert!(matches!(refused, RunError::Busy { waiting: 2 }), "{refused}");
    let last = taken.pop().unwrap();
    drop(taken);
    assert_eq!(last.wait().unwrap().tokens.len(), 400);
}

#[test]
fn a_deadline_ends_a_request_and_no_other() {
    let photon = Photon::builder().build().unwrap();
    let late = Request { deadline: Some(Duration::from_millis(30)), ..endless() };
    let late = photon.submit(late).unwrap();
    let other = photon.submit(Request::new(caption(), Some(pictures()[0].clone()))).unwrap();
    assert!(matches!(late.wait(), Err(RunError::Deadline)));
    other.wait().unwrap();
}

#[test]
fn a_request_that_can_never_fit_fails_alone() {
    let options = EngineOptions { kv_memory: Some(1 << 20), ..EngineOptions::default() };
    let photon = Photon::builder().options(options).build().unwrap();
    let small = Request {
        budget: Budget { max_tokens: 4, max_objects: 1 },
        ..Request::new(caption(), Some(pictures()[0].clone()))
    };
    let (large, small) = (photon.submit(endless()).unwrap(), photon.submit(small).unwrap());
    let error = large.wait().unwrap_err();
    assert!(matches!(error, RunError::TooLarge { .. }), "{error}");
    small.wait().unwrap();
}

#[test]
fn a_broken_picture_fails_alone() {
    let photon = Photon::builder().build().unwrap();
    let good = photon.submit(Request::new(caption(), Some(pictures()[0].clone()))).unwrap();
    let bad = ImageSource::Encoded(b"no picture".to_vec());
    let bad = photon.submit(Request::new(caption(), Some(bad))).unwrap();
    let missing = ImageSource::File("no/such/file.png".into());
    let missing = photon.submit(Request::new(caption(), Some(missing))).unwrap();
    assert!(matches!(bad.wait(), Err(RunError::Image(_))));
    assert!(matches!(missing.wait(), Err(RunError::Open(_))));
    good.wait().unwrap();
}

#[test]
fn the_end_drains_or_cancels() {
    for how in [Shutdown::Drain, Shutdown::Cancel] {
        let photon = Photon::builder().max_seqs(2).build().unwrap();
        let tickets: Vec<_> = (0..6).map(|_| photon.submit(endless()).unwrap()).collect();
        photon.clone().shutdown(how);
        for ticket in tickets {
            match (how, ticket.wait()) {
                (Shutdown::Drain, Ok(response)) => assert_eq!(response.tokens.len(), 400),
                (Shutdown::Cancel, Err(RunError::Cancelled)) => {}
                (how, other) => panic!("{how:?}: {other:?}"),
            }
        }
        let after = photon.submit(endless()).unwrap_err();
        assert!(matches!(after, RunError::Stopped(_)), "{after}");
    }
}

#[test]
fn many_threads_share_a_handle() {
    let photon = Photon::builder().build().unwrap();
    let pictures = Arc::new(pictures());
    let threads: Vec<_> = (0..8)
        .map(|i| {
            let (photon, pictures) = (photon.clone(), Arc::clone(&pictures));
            std::thread::spawn(move || {
                let image = pictures[i % pictures.len()].clone();
                photon.run(&Request::new(caption(), Some(image)), &mut |_| {}).unwrap().tokens
            })
        })
        .collect();
    let tokens: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    for (i, got) in tokens.iter().enumerate().skip(pictures.len()) {
        assert_eq!(got, &tokens[i - pictures.len()]);
    }
}

#[test]
fn stop_strings_end_the_text_before_them() {
    let photon = Photon::builder().build().unwrap();
    let plain = Request::new(caption(), Some(pictures()[0].clone()));
    let whole = photon.run(&plain, &mut |_| {}).unwrap();
    let photon::Answer::Caption { caption: whole } = whole.answer else { panic!("a caption") };
    let word = whole.split(' ').nth(2).unwrap();
    let mut streamed = String::new();
    let stopping = Request { stop: vec![word.to_string()], ..plain };
    let response = photon
        .run(&stopping, &mut |event| {
            if let SkillEvent::Text(text) = event {
                streamed.push_str(&text);
            }
        })
        .unwrap();
    let photon::Answer::Caption { caption } = response.answer else { panic!("a caption") };
    assert_eq!(caption, whole[..whole.find(word).unwrap()]);
    assert_eq!(streamed, caption);
}

#[test]
fn a_second_question_about_a_picture_skips_its_encoding() {
    let photon = Photon::builder().build().unwrap();
    let image = pictures()[0].clone();
    let ask = |question: &str| {
        photon.run(&Request::new(query(question), Some(image.clone())), &mut |_| {}).unwrap()
    };
    let first = ask("How many objects are there?").metrics;
    let second = ask("What color is the circle?").metrics;
    assert_eq!(first.cached_tokens, 0);
    assert!(second.cached_tokens >= 65, "BOS and 64 patches: {second:?}");
    assert_eq!(second.vision_time_ms, 0.0);
    assert_eq!(photon.stats().images_encoded, 1);
    // Another tenant learns nothing from it.
    let salted = Request { cache_salt: 5, ..Request::new(query("What?"), Some(image)) };
    assert_eq!(photon.run(&salted, &mut |_| {}).unwrap().metrics.cached_tokens, 0);
}

#[test]
fn events_come_to_asynchronous_tasks() {
    let photon = Photon::builder().build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut ticket = photon.submit(Request::new(caption(), Some(pictures()[0].clone()))).unwrap();
    let events = runtime.block_on(async move {
        let mut events = Vec::new();
        while let Some(event) = ticket.next_event().await {
            events.push(event.unwrap());
        }
        events
    });
    assert!(events.len() > 1);
    assert!(matches!(events.last(), Some(Event::Done(_))));
}

#[test]
fn the_time_to_the_first_token_is_waiting_vision_and_prefill() {
    let photon = Photon::builder().build().unwrap();
    let request = Request::new(caption(), Some(pictures()[0].clone()));
    let m = photon.run(&request, &mut |_| {}).unwrap().metrics;
    assert!(m.vision_time_ms > 0.0 && m.prefill_time_ms > 0.0, "{m:?}");
    let parts = m.preprocess_time_ms + m.queue_time_ms + m.vision_time_ms + m.prefill_time_ms;
    assert!(parts <= m.ttft_ms, "{m:?}");
}
