//! One feature a test, at four slots a block unless it says otherwise.
use photon_kv::{CacheStats, Namespace, PrefixCache, TokenKey};

use crate::world::{World, keys, namespace};

/// Runs `put`, `get` and `drop` of words and says what each `get` found.
#[track_caller]
fn check(num_blocks: u32, script: &str, want: &str) {
    let mut world = World::new(num_blocks, 4);
    let mut got = Vec::new();
    for command in script.split("; ") {
        let (verb, word) = command.split_once(' ').unwrap();
        let hit = world.begin(namespace(0), &keys(word)).expect("room");
        let last = world.live.len() - 1;
        match verb {
            "put" => world.release(last, word.len()),
            "run" => world.publish(last, word.len()),
            "get" => {
                let copied = hit.copy.map_or(0, |copy| copy.slots);
                got.push(format!("{} tokens, {copied} copied", hit.tokens));
                world.drop_lease(last);
            }
            verb => panic!("{verb}"),
        }
    }
    assert_eq!(got.join("; "), want);
}

#[test]
fn whole_blocks_are_shared_and_the_rest_is_copied() {
    check(20, "put ABCDEFGHIJ; get ABCDEFGHXY", "8 tokens, 0 copied");
    check(20, "put ABCDEFGHIJ; get ABCDEFGHIX", "9 tokens, 1 copied");
    check(20, "put ABCDEFGHIJ; get ABCDEFGHIJKL", "10 tokens, 2 copied");
    check(20, "put ABCDEFGHIJ; get ABCDEFX", "6 tokens, 2 copied");
    check(20, "put ABCDEFGHIJ; get ABX", "2 tokens, 2 copied");
    check(20, "put ABCDEFGHIJ; get XBC", "0 tokens, 0 copied");
}

#[test]
fn the_longest_of_several_ends_is_found() {
    check(30, "put ABCDEF; put ABCDEG; put ABCDEFGX; get ABCDEFGY", "7 tokens, 3 copied");
    check(30, "put ABCDAA; put ABCDBA; put ABCDBB; get ABCDBAXX", "6 tokens, 2 copied");
    check(30, "put AB; put ABCD; put ABC; get ABCX", "3 tokens, 3 copied");
}

#[test]
fn what_runs_is_shared_once_it_is_published() {
    check(20, "run ABCDEFGHIJ; get ABCDEFGHIJKL", "10 tokens, 2 copied");
    check(20, "run ABCDEFGH; run ABCDEFGHIJ; get ABCDEFGHIJ", "10 tokens, 2 copied");
}

#[test]
fn a_second_publisher_takes_the_blocks_of_the_first() {
    let mut world = World::new(20, 4);
    for _ in 0..2 {
        world.begin(namespace(0), &keys("ABCDEFGHI")).unwrap();
    }
    let free = world.cache.num_free();
    world.publish(0, 9);
    world.publish(1, 9);
    let blocks = |i: usize| world.live[i].lease.blocks()[..2].to_vec();
    assert_eq!(blocks(0), blocks(1));
    assert_eq!(
        world.cache.num_free(),
        free + 2 - 1,
        "two spare blocks came back, one holds the end"
    );
}

#[test]
fn a_lease_outlives_the_splitting_of_its_path() {
    let mut world = World::new(30, 4);
    world.begin(namespace(0), &keys("ABCDEFGHIJKLMNOP")).unwrap();
    world.publish(0, 16);
    world.begin(namespace(0), &keys("ABCDEFGHXXXX")).unwrap();
    world.publish(1, 12);
    world.begin(namespace(0), &keys("ABCDYYYY")).unwrap();
    world.publish(2, 8);
    assert!(world.extend(0, TokenKey::text(1)));
    assert_eq!(world.cache.num_evictable(), 0);
    while !world.live.is_empty() {
        world.drop_lease(0);
    }
    assert_eq!(world.cache.num_evictable(), 6, "4, then 1 beside it, then 1");
}

#[test]
fn the_least_recently_used_goes_first_and_from_its_end() {
    let mut world = World::new(8, 4);
    for word in ["AAAAAAAA", "BBBBBBBB", "CCCCCCCC"] {
        world.begin(namespace(0), &keys(word)).unwrap();
        world.release(0, 8);
    }
    let peek = |world: &World, word: &str| world.cache.peek(&namespace(0), &keys(word));
    // A is used again, so that B is the oldest.
    world.begin(namespace(0), &keys("AAAAAAAA")).unwrap();
    world.release(0, 8);
    world.begin(namespace(0), &keys("DDDDDDDD")).unwrap();
    let left = ["AAAAAAAA", "BBBBBBBB", "CCCCCCCC"].map(|word| peek(&world, word));
    assert_eq!(left, [8, 4, 8]);
}

#[test]
fn what_is_in_use_is_never_evicted() {
    let mut world = World::new(6, 4);
    world.begin(namespace(0), &keys("ABCDEFGH")).unwrap();
    world.publish(0, 8);
    assert_eq!(world.begin(namespace(1), &keys("AAAABBBBCCCCDDDD")), None);
    assert!(world.begin(namespace(1), &keys("AAAABBBBCCCC")).is_some());
    assert_eq!(world.cache.num_free(), 0);
    assert!(!world.extend(0, TokenKey::text(0)));
    world.drop_lease(1);
    assert!(world.extend(0, TokenKey::text(0)));
}

#[test]
fn without_a_block_for_the_copy_the_hit_ends_with_the_last_whole_block() {
    let mut world = World::new(5, 4);
    world.begin(namespace(0), &keys("ABCDEF")).unwrap();
    world.publish(0, 6);
    world.begin(namespace(1), &keys("XYZ")).unwrap();
    assert_eq!(world.cache.num_free(), 0);
    // The end that was published is all that could be evicted, and it is what is to be copied.
    let (lease, hit) = world.cache.acquire(&namespace(0), &keys("ABCDEFG"));
    assert_eq!((hit.tokens, hit.copy), (4, None));
    world.cache.drop_lease(lease);
    world.check();
}

#[test]
fn blocks_past_what_is_needed_go_back() {
    let mut cache = PrefixCache::new(8, 4);
    let (mut lease, _) = cache.acquire(&namespace(0), &[]);
    assert!(cache.grow(&mut lease, 17));
    cache.publish(&mut lease, &namespace(0), &keys("ABCD"));
    for (tokens, blocks) in [(17, 5), (16, 4), (13, 4), (5, 2), (99, 2), (4, 1)] {
        cache.shrink(&mut lease, tokens);
        assert_eq!((lease.blocks().len(), cache.num_free()), (blocks, 7 - blocks as u32));
        cache.check();
    }
    cache.drop_lease(lease);
}

#[test]
#[should_panic(expected = "1 shared blocks, 0 to keep")]
fn to_give_back_what_is_shared_is_a_bug() {
    let mut cache = PrefixCache::new(8, 4);
    let (mut lease, _) = cache.acquire(&namespace(0), &[]);
    assert!(cache.grow(&mut lease, 8));
    cache.publish(&mut lease, &namespace(0), &keys("ABCD"));
    cache.shrink(&mut lease, 0);
}

#[test]
fn what_a_pending_copy_reads_stays() {
    let mut cache = PrefixCache::new(4, 4);
    let space = namespace(0);
    let (mut lease, _) = cache.acquire(&space, &keys("AB"));
    assert!(cache.grow(&mut lease, 2));
    cache.release(lease, &space, &keys("AB"));
    let (mut lease, hit) = cache.acquire(&space, &keys("ABC"));
    assert_eq!(hit.tokens, 2);
    assert!(!cache.grow(&mut lease, 12), "of three blocks one is being read");
    cache.copies_done();
    assert!(cache.grow(&mut lease, 12), "it may be written after the copy");
    cache.check();
    cache.drop_lease(lease);
}

#[test]
fn namespaces_never_share() {
    let word = keys("ABCDEFGH");
    let base = Namespace::default();
    let others = [
        Namespace { model: 1, ..base },
        Namespace { adapter: 1, ..base },
        Namespace { image: Some([0; 32]), ..base },
        Namespace { preprocess: 1, ..base },
        Namespace { tenant: 1, ..base },
    ];
    let mut world = World::new(20, 4);
    world.begin(base, &word).unwrap();
    world.release(0, 8);
    assert_eq!(world.cache.peek(&base, &word), 8);
    for other in others {
        assert_eq!(world.cache.peek(&other, &word), 0, "{other:?}");
    }
}

#[test]
fn an_image_of_730_positions_is_a_hit_as_a_whole() {
    let image: Vec<_> =
        [TokenKey::text(0)].into_iter().chain((0..729).map(TokenKey::image)).collect();
    let ask = |id: u32| [&image[..], &[TokenKey::text(id), TokenKey::text(id + 1)]].concat();
    let mut world = World::new(200, 16);
    world.begin(namespace(0), &ask(1)).unwrap();
    world.publish(0, 730);
    let hit = world.begin(namespace(0), &ask(5)).unwrap();
    assert_eq!((hit.tokens, hit.copy.unwrap().slots), (730, 730 % 16));
}

#[test]
fn a_lease_given_back_early_keeps_what_was_computed() {
    let mut world = World::new(20, 4);
    world.begin(namespace(0), &keys("ABCDEFGHIJ")).unwrap();
    world.release(0, 6);
    assert_eq!(world.cache.peek(&namespace(0), &keys("ABCDEFGHIJ")), 6);
    assert_eq!(world.cache.num_cached(), 2);
}

#[test]
#[should_panic(expected = "dropped, not given back")]
fn a_forgotten_lease_is_a_bug() {
    let mut cache = PrefixCache::new(4, 4);
    let (mut lease, _) = cache.acquire(&namespace(0), &[]);
    assert!(cache.grow(&mut lease, 1));
}

#[test]
fn publishing_less_than_is_shared_changes_nothing() {
    let mut world = World::new(20, 4);
    world.begin(namespace(0), &keys("ABCDEFGHIJ")).unwrap();
    world.publish(0, 10);
    world.publish(0, 6);
    assert_eq!(world.cache.num_cached(), 3);
    assert_eq!(world.cache.peek(&namespace(0), &keys("ABCDEFGHEF")), 8);
}

#[test]
fn keys_of_different_kinds_never_match() {
    let one = 1f32.to_bits();
    let kinds = [TokenKey::text(one), TokenKey::image(one), TokenKey::coord(one)];
    let mut world = World::new(20, 1);
    for (i, kind) in kinds.into_iter().chain([TokenKey::size(0, one)]).enumerate() {
        assert_eq!(world.cache.peek(&namespace(0), &[kind]), 0, "{kind:?}");
        world.begin(namespace(0), &[kind]).unwrap();
        world.release(0, 1);
        assert_eq!(world.cache.num_cached() as usize, i + 1);
    }
}

#[test]
fn a_longer_end_takes_the_place_of_a_shorter_one() {
    let mut world = World::new(20, 4);
    world.begin(namespace(0), &keys("ABCDE")).unwrap();
    world.publish(0, 5);
    assert_eq!(world.cache.num_cached(), 2, "ABCD, and E in part");
    for letter in "FGH".bytes() {
        assert!(world.extend(0, TokenKey::text(letter.into())));
    }
    world.step();
    world.release(0, 8);
    assert_eq!(world.cache.num_cached(), 2, "ABCD and EFGH");
}

#[test]
fn giving_a_lease_back_is_a_use_of_what_it_shares() {
    let mut world = World::new(7, 4);
    world.begin(namespace(0), &keys("AAAA")).unwrap();
    world.publish(0, 4);
    world.begin(namespace(0), &keys("BBBB")).unwrap();
    world.release(1, 4);
    world.release(0, 4);
    world.begin(namespace(0), &keys("CCCCCCCCCCCCCCCCCCCC")).unwrap();
    let peek = |word: &str| world.cache.peek(&namespace(0), &keys(word));
    assert_eq!([peek("AAAA"), peek("BBBB")], [4, 0]);
}

#[test]
fn a_hit_refreshes_only_the_blocks_it_used() {
    let mut world = World::new(7, 4);
    for word in ["AAAABBBBCCCC", "XXXX"] {
        world.begin(namespace(0), &keys(word)).unwrap();
        world.release(0, word.len());
    }
    // Whole AAAA, two slots of BBBB, nothing of CCCC.
    let hit = world.begin(namespace(0), &keys("AAAABB")).unwrap();
    assert_eq!(hit.tokens, 6);
    world.drop_lease(0);
    world.begin(namespace(1), &keys("YYYYYYYYYYYY")).unwrap();
    let peek = |word: &str| world.cache.peek(&namespace(0), &keys(word));
    assert_eq!([peek("AAAABBBBCCCC"), peek("XXXX")], [8, 4]);
}

#[test]
fn a_preempted_sequence_resumes_with_what_it_had_computed() {
    let mut world = World::new(20, 4);
    world.begin(namespace(0), &keys("ABCDEFGHIJ")).unwrap();
    assert!(world.extend(0, TokenKey::text(1)));
    world.step();
    let known = world.live[0].keys.clone();
    world.release(0, 11);
    let hit = world.begin(namespace(0), &known[..]).unwrap();
    assert_eq!((hit.tokens, hit.copy.unwrap().slots), (11, 3));
}

#[test]
fn nothing_is_kept_of_a_dropped_lease() {
    let mut world = World::new(20, 4);
    world.begin(namespace(0), &keys("ABCDEFGHIJ")).unwrap();
    world.drop_lease(0);
    assert_eq!((world.cache.num_free(), world.cache.num_cached()), (19, 0));
}

#[test]
fn clearing_leaves_what_is_locked() {
    let mut world = World::new(20, 4);
    world.begin(namespace(0), &keys("ABCDEFGHIJ")).unwrap();
    world.release(0, 10);
    world.begin(namespace(0), &keys("ABCDXX")).unwrap();
    world.clear();
    assert_eq!(world.cache.num_cached(), 1);
    assert_eq!(world.cache.peek(&namespace(0), &keys("ABCDEFGHIJ")), 4);
}

#[test]
fn statistics_count_queries_tokens_and_evictions() {
    let mut world = World::new(4, 4);
    world.begin(namespace(0), &keys("ABCDEFGH")).unwrap();
    world.release(0, 8);
    world.begin(namespace(0), &keys("ABCDXXXX")).unwrap();
    world.release(0, 8);
    world.begin(namespace(0), &keys("ZZZZ")).unwrap();
    let want = CacheStats { queries: 3, hit_tokens: 4, query_tokens: 20, evicted_blocks: 1 };
    assert_eq!(world.cache.stats(), want);
}

#[test]
#[should_panic(expected = "not those of what the lease shares")]
fn keys_of_another_sequence_are_a_bug() {
    let mut world = World::new(20, 4);
    world.begin(namespace(0), &keys("ABCDEFGH")).unwrap();
    world.publish(0, 4);
    world.live[0].keys[0] = TokenKey::text(0);
    world.publish(0, 8);
}

#[test]
#[should_panic(expected = "3 blocks of keys, 2")]
fn keys_past_the_blocks_are_a_bug() {
    let mut cache = PrefixCache::new(8, 4);
    let (mut lease, _) = cache.acquire(&namespace(0), &[]);
    assert!(cache.grow(&mut lease, 8));
    cache.publish(&mut lease, &namespace(0), &keys("ABCDEFGHI"));
}
