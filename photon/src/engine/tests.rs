//! What cannot be made to happen from outside: bugs, planted where they would be.
use crate::{CaptionLength, Image, Photon, Request, RunError, Skill};

/// Requests with this salt panic on a worker thread.
pub(super) const PANIC_IN_PREPARE: u64 = u64::MAX;
/// Requests with this salt panic on the engine's thread.
pub(super) const PANIC_IN_SKILL: u64 = u64::MAX - 1;

fn request(cache_salt: u64) -> Request {
    let image = Image::from_rgb(60, 40, vec![200; 60 * 40 * 3]).unwrap();
    let skill = Skill::Caption { length: CaptionLength::Short };
    Request { cache_salt, ..Request::new(skill, Some(image)) }
}

#[test]
fn a_bug_in_one_request_fails_that_request_only() {
    let photon = Photon::builder().build().unwrap();
    let want = photon.run(&request(0), &mut |_| {}).unwrap().tokens;
    for salt in [PANIC_IN_PREPARE, PANIC_IN_SKILL] {
        let tickets: Vec<_> =
            [0, salt, 0, salt, 0].map(|salt| (salt, photon.submit(request(salt)).unwrap())).into();
        for (salt, ticket) in tickets {
            match (salt, ticket.wait()) {
                (0, Ok(response)) => assert_eq!(response.tokens, want),
                (0, Err(error)) => panic!("{error}"),
                (_, Err(RunError::Bug(message))) => {
                    assert!(message.contains("planted"), "{message}");
                }
                (_, other) => panic!("{other:?}"),
            }
        }
    }
    let stats = photon.stats();
    assert_eq!(stats.blocks_free + stats.blocks_cached, stats.blocks, "{stats:?}");
}
