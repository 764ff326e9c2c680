//! One policy per test, told as a script; the script's language is in [`world`].

use crate::{AddError, Limits};

mod world;
use world::{check, check_with};

/// Blocks of 4, a picture of 6 positions, room for everything.
const LIMITS: Limits = Limits {
    max_seqs: 8,
    token_budget: 16,
    num_blocks: 33,
    block_size: 4,
    max_waiting: 16,
    watermark_blocks: 1,
    max_atomic_per_step: 4,
    max_adapters: 1,
    max_passed: 2,
};

#[test]
fn a_prompt_is_prefilled_and_then_decoded_token_by_token() {
    check("add a abcde new=3; step 4", "a 0..5*; a 5..6*; a 6..7*, a finished; -");
}

#[test]
fn prefill_and_decode_mix_in_one_step() {
    check(
        "add a abc; step; add b abxyz; step",
        "a 0..3*; a 3..4*, b 2..5* hit 2 of which 2 copied",
    );
}

#[test]
fn a_long_text_is_prefilled_in_chunks_of_what_the_decodes_leave() {
    check(
        "add a abc; step; add b 0123456789012345678901234567; step 3",
        "a 0..3*; a 3..4*, b 0..15; a 4..5*, b 15..28*; a 5..6*, b 28..29*",
    );
}

#[test]
fn running_prefills_go_before_admissions() {
    check("add a 01234567890123456789; add b xyz; step 2", "a 0..16; a 16..20*, b 0..3*");
}

#[test]
fn a_picture_is_computed_in_one_piece_and_its_text_as_far_as_the_budget_goes() {
    let limits = Limits { token_budget: 8, ..LIMITS };
    check_with(limits, "add a wxyz img=1; step 2", "a 0..8; a 8..10*");
}

#[test]
fn a_picture_larger_than_the_budget_runs_alone_and_never_twice_in_a_row() {
    let limits = Limits { token_budget: 3, max_seqs: 3, ..LIMITS };
    check_with(
        limits,
        "add a ab; step; add b w img=1; add c w img=2; step 4",
        "a 0..2*; b 0..6; a 2..3*, b 6..7*; c 0..6; a 3..4*, b 7..8*, c 6..7*",
    );
}

#[test]
fn a_picture_that_does_not_fit_beside_a_prefill_goes_before_it() {
    check(
        "add a 0123456789012345678901234567890123456789; step; add b w img=1; step 2",
        "a 0..16; b 0..6, a 16..26; b 6..7*, a 26..40*",
    );
}

#[test]
fn pictures_per_step_are_limited() {
    let limits = Limits { max_atomic_per_step: 1, token_budget: 32, ..LIMITS };
    check_with(limits, "add a w img=1; add b w img=2; step 2", "a 0..7*; a 7..8*, b 0..7*");
}

#[test]
fn the_whole_blocks_of_a_prefix_are_shared_and_a_part_of_one_is_copied() {
    check(
        "add a abcdefgh new=1; step; add b abcdefxx; step",
        "a 0..8*, a finished; b 6..8* hit 6 of which 2 copied",
    );
}

#[test]
fn a_prompt_is_shared_while_its_sequence_runs() {
    check(
        "add a abcdefgh; step; add b abcdefgh; step",
        "a 0..8*; a 8..9*, b 7..8* hit 7 of which 3 copied",
    );
}

#[test]
fn a_hit_of_less_than_the_picture_is_none() {
    // The tail of the picture is evicted by the sequence that needs all blocks but one.
    check(
        "add a xyzxyz img=1 nocache new=1; step; add b xyzxyz img=1; step",
        "a 0..12*, a finished; b 0..12*",
    );
}

#[test]
fn a_sequence_that_must_not_cache_neither_reads_nor_leaves_anything() {
    check(
        "add a abcdefgh new=1; step; add b abcdefgh new=1 nocache; step; add c abcdxxxx; step",
        "a 0..8*, a finished; b 0..8*, b finished; c 4..8* hit 4",
    );
}

#[test]
fn identical_pictures_in_flight_are_computed_once() {
    check(
        "add a u img=1; add b v img=1; add c w img=2; step 2",
        "a 0..7*, c 0..7*; a 7..8*, c 7..8*, b 6..7* hit 6 of which 2 copied",
    );
}

#[test]
fn a_higher_priority_is_admitted_first_and_equal_ones_by_arrival() {
    let limits = Limits { max_seqs: 1, ..LIMITS };
    check_with(
        limits,
        "add a p new=1; add b q new=1; add c r new=1 pri=1; step 3",
        "c 0..1*, c finished; a 0..1*, a finished; b 0..1*, b finished",
    );
}

#[test]
fn the_youngest_is_preempted_when_the_pool_is_dry_and_resumes_with_what_stayed() {
    let limits = Limits { num_blocks: 6, watermark_blocks: 0, ..LIMITS };
    check_with(
        limits,
        "add a abcdefgh new=8; add b stuvwxyz new=8; step 8",
        "a 0..8*, b 0..8*; a 8..9*, preempted b; a 9..10*; a 10..11*; a 11..12*; a 12..13*; \
         a 13..14*; a 14..15*, a finished",
    );
}

#[test]
fn the_lower_priority_is_preempted_even_if_it_is_older() {
    let limits = Limits { num_blocks: 6, watermark_blocks: 0, ..LIMITS };
    check_with(
        limits,
        "add a abcdefgh new=8 pri=-1; add b stuvwxyz new=8; step 2",
        "b 0..8*, a 0..8*; b 8..9*, preempted a",
    );
}

#[test]
fn a_preempted_sequence_is_the_next_of_its_priority() {
    // The older picture does not fit beside `a`; the hit `b` does until `a` has grown.
    let limits = Limits { num_blocks: 9, watermark_blocks: 0, ..LIMITS };
    check_with(
        limits,
        "add h abcdefgh new=1; step; add a 0123456789012345 new=7; step; \
         add m 0123456789 img=1; add b abcdefgx new=8; step 8",
        "h 0..8*, h finished; a 0..16*; a 16..17*, b 7..8* hit 7 of which 3 copied; \
         a 17..18*, b 8..9*; a 18..19*, b 9..10*; a 19..20*, b 10..11*; \
         a 20..21*, preempted b; a 21..22*, a finished; b 8..12*, m 0..12; b 12..13*, m 12..16*",
    );
}

#[test]
fn admission_leaves_the_watermark_but_a_sequence_alone_may_have_all() {
    let limits = Limits { num_blocks: 6, watermark_blocks: 2, ..LIMITS };
    check_with(
        limits,
        "add a 01234567890123456 new=3; step; add b x; step 3",
        "a 0..16; a 16..17*; a 17..18*; a 18..19*, a finished",
    );
}

#[test]
fn a_cancelled_sequence_ends_in_the_next_step() {
    check(
        "add a ab; add b cd; step; cancel a; cancel b; step",
        "a 0..2*, b 0..2*; a cancelled, b cancelled",
    );
}

#[test]
fn a_sequence_cancelled_in_flight_keeps_its_blocks_until_the_step_is_over() {
    check(
        "add a abcde; plan; cancel a; blocks a; apply; blocks a; step; blocks a",
        "a 0..5*; a has 2 blocks; a has 2 blocks; a cancelled; a has 0 blocks",
    );
}

#[test]
fn a_deadline_ends_waiting_and_running_sequences() {
    let limits = Limits { max_seqs: 1, ..LIMITS };
    check_with(
        limits,
        "add a ab by=2; add b cd by=1; step 3",
        "a 0..2*; a 2..3*, b expired; a expired",
    );
}

#[test]
fn a_sequence_that_can_never_fit_is_refused_alone() {
    let limits = Limits { num_blocks: 3, ..LIMITS };
    check_with(
        limits,
        "add a abcde new=4; add b abcde new=3; step",
        "a never fits: 3 blocks of 3; b 0..5*",
    );
}

#[test]
fn a_full_queue_refuses() {
    let limits = Limits { max_waiting: 1, ..LIMITS };
    check_with(limits, "add a ab; add b cd; step; add c ef", "b refused: 1 of 1 wait; a 0..2*");
}

#[test]
fn hits_pass_over_a_miss_that_does_not_fit_until_it_is_overdue() {
    // Beside `a` there are three blocks: too few for the picture, enough for a hit. `d` must wait.
    let limits = Limits { num_blocks: 9, watermark_blocks: 0, ..LIMITS };
    check_with(
        limits,
        "add h abcdefgh new=1; step; add a 01234567890123456789 new=5; step 2; \
         add m 0123456789 img=1 new=3; add b abcdefgx new=1; add c abcdefgy new=1; \
         add d abcdefgz new=1; step 6",
        "h 0..8*, h finished; a 0..16; a 16..20*; a 20..21*, b 4..8* hit 4, b finished; \
         a 21..22*, c 4..8* hit 4, c finished; a 22..23*; a 23..24*, a finished; m 0..16*; \
         m 16..17*, d 0..8*, d finished",
    );
}

#[test]
fn drafted_tokens_count_up_to_the_first_wrong_one() {
    check(
        "add a abc; step; draft a 4 2; step; draft a 2 0; step; draft a 2 2; step; step",
        "a 0..3*; a 3..4*+4; a 6..7*+2; a 7..8*+2, a finished; -",
    );
}

#[test]
fn a_draft_ends_where_its_sequence_must() {
    check("add a abc new=4; step; draft a 9 9; step; step", "a 0..3*; a 3..4*+3, a finished; -");
}

#[test]
fn drafts_take_what_prefills_and_admissions_leave_of_the_budget() {
    check(
        "add a abc; step; draft a 9 0; add b 0123456789; step; draft a 9 0; draft b 9 0; step",
        "a 0..3*; a 3..4*+5, b 0..10*; a 4..5*+6, b 10..11*+7",
    );
}

#[test]
fn the_blocks_of_a_wrong_draft_are_free_again() {
    check(
        "add a abc; step; draft a 7 0; plan; blocks a; apply; blocks a; draft a 3 3; step; blocks a",
        "a 0..3*; a 3..4*+7; a has 3 blocks; a has 1 blocks; a 4..5*+3; a has 2 blocks",
    );
}

#[test]
fn a_draft_takes_free_blocks_only() {
    // Of six blocks two hold `h`, two are `a`'s, one holds a copy of the end of its prompt, one is free.
    let limits = Limits { num_blocks: 7, watermark_blocks: 0, ..LIMITS };
    check_with(
        limits,
        "add h 01234567 new=1; step; add a abcdef new=14; step; draft a 9 0; step; \
         draft a 9 5; step; draft a 9 0; step 2",
        "h 0..8*, h finished; a 0..6*; a 6..7*+5; a 7..8*+4; a 12..13*+3; a 13..14*",
    );
}

#[test]
fn nobody_drafts_in_a_step_that_preempts() {
    let limits = Limits { num_blocks: 6, watermark_blocks: 0, ..LIMITS };
    check_with(
        limits,
        "add a abcdefgh new=8; add b stuvwxyz new=8; step; draft a 3 3; draft b 3 3; step; \
         draft a 3 3; step",
        "a 0..8*, b 0..8*; a 8..9*, preempted b; a 9..10*+2",
    );
}

#[test]
fn what_is_shared_of_a_sequence_has_nothing_of_a_wrong_draft() {
    // The answer to `a` is A B C, the draft had two wrong tokens after A.
    check(
        "add a abc new=3; step; draft a 3 1; step; add b abcABx; step; add c abcABCx; step",
        "a 0..3*; a 3..4*+2, a finished; b 5..6* hit 5 of which 1 copied; \
         b 6..7*, c 5..7* hit 5 of which 1 copied",
    );
}

#[test]
fn an_error_says_its_numbers() {
    let full = AddError::Full { waiting: 7, max: 7 };
    assert_eq!(full.to_string(), "7 sequences are waiting, at most 7 may");
    let fits = AddError::NeverFits { needed_blocks: 9, num_blocks: 9 };
    assert_eq!(fits.to_string(), "the sequence may need 9 blocks, the pool has 8");
}

#[test]
#[should_panic(expected = "8 sequences need a token each in a step, the budget is 4")]
fn limits_that_contradict_each_other_are_a_bug() {
    Limits { token_budget: 4, ..LIMITS }.check();
}

#[test]
#[should_panic(expected = "the step before has not been applied")]
fn a_second_step_in_flight_is_a_bug() {
    check("add a ab; plan; plan", "");
}
