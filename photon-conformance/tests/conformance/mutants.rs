//! Every planted bug is caught by a case of the operation it is in.
use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

use photon_conformance::{Case, Options, cases};

use crate::mutant::{Bug, Mutant};

const OPTIONS: Options = Options { batch_invariant: true, chunk_invariant: true, ..Options::FULL };

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Whether the case panics. The panics wanted here are not printed: with backtraces they take longer
/// than the cases.
fn fails(case: &Case<Mutant>, bug: Bug) -> bool {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                usual(info);
            }
        }));
    });
    IS_QUIET.set(bug != Bug::Nothing);
    let result = catch_unwind(AssertUnwindSafe(|| (case.run)(&Mutant(bug), &OPTIONS)));
    IS_QUIET.set(false);
    result.is_err()
}

/// Bugs of the operations whose names begin so.
fn caught(prefix: &str, bugs: &[Bug]) {
    let cases: Vec<_> =
        cases::<Mutant>().into_iter().filter(|c| c.name.starts_with(prefix)).collect();
    // The cheap cases have to do: the real shapes are for the backends.
    let cheap = || cases.iter().filter(|c| !c.name.contains("real"));
    for case in cheap() {
        assert!(!fails(case, Bug::Nothing), "{case:?} fails without a bug");
    }
    let escaped: Vec<Bug> =
        bugs.iter().copied().filter(|&bug| !cheap().any(|case| fails(case, bug))).collect();
    assert!(escaped.is_empty(), "no {prefix} case notices {escaped:?}");
}

#[test]
fn linear() {
    use Bug::*;
    caught(
        "linear",
        &[
            IgnoresBias,
            ForgetsToAccumulate,
            AlwaysAccumulates,
            SkipsGelu,
            ActivatesTheResidual,
            WritesOneRowTooMany,
            DropsTailColumns,
            DropsTailOfSum,
            Truncates,
            RoundsTwice,
            IgnoresRowStride,
            ChangesItsInput,
            SpillsIntoTheGap,
            DependsOnTheBatch,
        ],
    );
}

#[test]
fn gates() {
    use Bug::*;
    caught(
        "activate",
        &[OtherGelu, WritesOneRowTooMany, DropsTailColumns, Truncates, IgnoresRowStride],
    );
    caught(
        "gated_gelu",
        &[ForgetsTheOne, SwapsAxes, OtherGelu, WritesOneRowTooMany, DropsTailColumns, Truncates],
    );
}

#[test]
fn experts() {
    use Bug::*;
    caught(
        "grouped_linear",
        &[
            BadIndexIsZero,
            BadIndexWraps,
            SkipsLastIndex,
            ReadsTheNextRow,
            ForgetsToAccumulate,
            AlwaysAccumulates,
            WritesOneRowTooMany,
            DropsTailColumns,
            Truncates,
            RoundsTwice,
            DependsOnTheBatch,
        ],
    );
    caught(
        "route",
        &[NanIsLarge, TakesTheLastOfEquals, BadIndexWraps, SoftmaxOverAll, IgnoresWeights],
    );
    caught("nest", &[BadIndexIsZero, BadIndexWraps, ForgetsScale, WritesOneRowTooMany]);
    caught(
        "weighted_sum",
        &[
            IgnoresWeights,
            MissesLastPosition,
            ForgetsToAccumulate,
            WritesOneRowTooMany,
            DropsTailColumns,
            Truncates,
        ],
    );
}

#[test]
fn layer_norm() {
    use Bug::*;
    caught(
        "layer_norm",
        &[
            ForgetsEpsilon,
            CorrectsBessel,
            ComputesVarianceInOnePass,
            IgnoresBias,
            WritesOneRowTooMany,
            DropsTailColumns,
            Truncates,
            DependsOnTheBatch,
        ],
    );
}

#[test]
fn patchify_and_patch_embed() {
    use Bug::*;
    caught("patchify", &[SwapsAxes, OffByOnePixelValue, WritesOneRowTooMany, Truncates]);
    caught("patch_embed", &[IgnoresBias, IgnoresPositions, PositionsOfFirstCropOnly, SwapsAxes]);
}

#[test]
fn rows_that_move() {
    use Bug::*;
    caught("tile", &[RepeatsTheLastRow, WritesOneRowTooMany, DropsTailColumns, Truncates]);
    caught(
        "gather",
        &[BadIndexIsZero, BadIndexWraps, SkipsLastIndex, WritesOneRowTooMany, Truncates],
    );
    caught("scatter", &[BadIndexIsZero, BadIndexWraps, SkipsLastIndex, ClearsFirst, Truncates]);
    caught(
        "copy",
        &[Truncates, DropsTailColumns, IgnoresRowStride, SpillsIntoTheGap, LosesTheSignOfZero],
    );
}

#[test]
fn attention() {
    use Bug::*;
    caught(
        "attention",
        &[
            ForgetsScale,
            MissesLastPosition,
            SeesOtherSequences,
            ForgetsTheMaximum,
            RoundsTwice,
            DropsTailColumns,
            WritesOneRowTooMany,
        ],
    );
}

#[test]
fn rope_store() {
    use Bug::*;
    caught(
        "rope_store",
        &[
            TurnsBackwards,
            RotatesTheRestToo,
            ForgetsToRotateK,
            ForgetsTau,
            ForgetsAlpha,
            SwapsHalves,
            ScalesKToo,
            RoundsTwice,
            BadIndexIsZero,
            BadPositionIsZero,
            BadSlotSkipsTheToken,
            BadPositionStillStores,
            WritesOneRowTooMany,
            CodesAreOneOff,
            ScalesAreHalved,
            ZeroesWhatIsNotFinite,
        ],
    );
}

#[test]
fn paged_attention() {
    use Bug::*;
    caught(
        "paged_attention",
        &[
            ForgetsScale,
            IgnoresSpans,
            TilesSeeAlike,
            TrustsTheOrder,
            ReadsStaleSlots,
            MissesLastPosition,
            BadIndexIsZero,
            BadBlockIsClamped,
            IgnoresBlockTables,
            WritesRowsThatSeeNothing,
            UsesWrongKeyHead,
            SeesTheFuture,
            IgnoresRowStride,
            RoundsTwice,
            WritesOneRowTooMany,
            DependsOnTheBatch,
            DependsOnTheChunk,
            IgnoresScales,
            ScaleOfTheNextHead,
        ],
    );
}

#[test]
fn stitch_pool() {
    use Bug::*;
    caught("stitch_pool", &[PoolsTheGlobalCrop, SwapsAxes, IgnoresMargin, SwapsHalves, Truncates]);
}

#[test]
fn fourier() {
    use Bug::*;
    caught("fourier", &[SwapsHalves, ForgetsScale, WritesOneRowTooMany, Truncates]);
}

#[test]
fn sample() {
    use Bug::*;
    caught(
        "sample",
        &[
            IgnoresBans,
            IgnoresAllowed,
            IgnoresTopK,
            IgnoresTopP,
            IgnoresMinP,
            TopKOneTooMany,
            IgnoresTemperature,
            IgnoresSeed,
            IgnoresStream,
            DependsOnTheBatch,
            LogprobAfterTruncation,
            NanIsSmall,
            TakesTheLastOfEquals,
            ScalesTheDraw,
            IgnoresMasks,
            IgnoresRowsOfMasks,
            ReversesMasks,
            DropsTailOfMasks,
            BadIndexIsZero,
            BadIndexWraps,
        ],
    );
}

#[test]
fn device() {
    use Bug::*;
    caught(
        "device",
        &[
            MemoryIsDirty,
            AbsurdAllocationPanics,
            UploadIgnoresOffset,
            ReadBackIgnoresRange,
            CaptureRuns,
            CaptureBakesInputs,
            BakesInputs,
            ReplayDoesNothing,
            AcceptsAnyWeight,
            ReportsAllMemoryAsFree,
            ZeroRowsWriteOne,
        ],
    );
}
