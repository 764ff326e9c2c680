//! One test suite that every device must pass.
//!
//! [`suite!`] expands to one `#[test]` per case of [`for_each_case!`], on the device an expression makes:
//!
//! ```ignore
//! mod avx2 {
//!     photon_conformance::suite!(Cpu::new(2));
//! }
//! mod gpu {
//!     use photon_conformance::{Options, suite};
//!     suite!(optional Gpu::open().ok(), Options { batch_invariant: true, ..Options::FULL });
//! }
//! ```
//!
//! Each operation is compared with an f64 oracle written from the formulas in photon-core's docs; see
//! `rig.rs` for what surrounds a tensor under test and how tolerances come about. A failure names the
//! operation, the shapes and types, the element, what was got, what was wanted, and the seed.
//!
//! Deliberately absent: speed, models, and anything about a backend's insides. Only tests import this.
#![forbid(unsafe_code)]

mod cache;
mod cases;
pub mod naive;
mod options;
mod oracle;
mod rig;
mod rng;

use std::{collections::BTreeSet, fmt::Debug, sync::Mutex};

use photon_core::Kernels;

pub use naive::Naive;
pub use options::Options;

/// Calls the macro in brackets with the arguments and then `name => function` for every case: the one
/// place where the cases are listed. A case is named after its operation, or `device`.
#[macro_export]
macro_rules! for_each_case {
    ([$($then:tt)*] $($arguments:tt)*) => {
        $($then)*! { $($arguments)* [
            linear_every_type => linear::every_type,
            linear_ragged_shapes => linear::ragged_shapes,
            linear_real_shapes => linear::real_shapes,
            linear_many_rows => linear::many_rows,
            linear_batch_invariance => linear::batch_invariance,
            activate_every_type => gate::activate,
            grouped_linear_every_type => experts::grouped_linear,
            grouped_linear_many_rows => experts::grouped_linear_many_rows,
            grouped_linear_real_shapes => experts::grouped_linear_real,
            grouped_linear_batch_invariance => experts::grouped_linear_invariance,
            grouped_linear_copied_matrices => experts::grouped_linear_copied,
            route_every_type => experts::route,
            nest_poisoned_indices => experts::nest,
            gated_gelu_every_type => gate::gated_gelu,
            weighted_sum_every_type => experts::weighted_sum,
            layer_norm_every_type => norm::every_type,
            layer_norm_far_from_zero => norm::far_from_zero,
            layer_norm_batch_invariance => norm::batch_invariance,
            patchify_every_type => vision::patchify,
            tile_every_type => rows::tile,
            tile_position_table => rows::tile_of_positions,
            patch_embed_equals_reference_and_oracle => vision::patch_embed,
            attention_every_type => vision::attention,
            attention_large_scores => vision::attention_large_scores,
            attention_real_shape => vision::attention_real_shape,
            rope_store_every_type => rope::every_type,
            rope_store_poisoned_indices => rope::poisoned_indices,
            rope_store_tau => rope::tau,
            paged_attention_decode => paged::decode,
            paged_attention_prefill_and_decode => paged::prefill_and_decode,
            paged_attention_spans => paged::spans,
            paged_attention_any_order => paged::any_order,
            paged_attention_poisoned_tables => paged::poisoned_tables,
            paged_attention_poisoned_lengths => paged::poisoned_lengths,
            paged_attention_shared_blocks => paged::shared_blocks,
            paged_attention_large_scores => paged::large_scores,
            paged_attention_real_shapes => paged::real_shapes,
            paged_attention_batch_invariance => paged::batch_invariance,
            paged_attention_chunk_invariance => paged::chunk_invariance,
            stitch_pool_every_type => vision::stitch_pool,
            stitch_pool_real_shapes => vision::stitch_pool_real_shapes,
            gather_every_type => rows::gather,
            gather_poisoned_indices => rows::gather_poisoned,
            scatter_every_type => rows::scatter,
            scatter_poisoned_indices => rows::scatter_poisoned,
            fourier_every_type => vision::fourier,
            sample_every_type => sample::every_type,
            sample_real_vocabulary => sample::real_vocabulary,
            sample_no_token => sample::no_token,
            sample_masks => sample::masks,
            sample_batch_invariance => sample::does_not_depend_on_the_batch,
            sample_follows_the_distribution => sample::follows_the_distribution,
            copy_every_type => rows::copy,
            copy_keeps_bits => rows::copy_keeps_bits,
            copy_special_values => rows::copy_special_values,
            device_names_itself => device::names_itself,
            device_memory_starts_as_zero => device::memory_starts_as_zero,
            device_absurd_allocations_fail => device::absurd_allocations_fail,
            device_uploads_and_read_backs_keep_order => device::uploads_and_read_backs_keep_order,
            device_host_buffers_hold_bytes => device::host_buffers_hold_bytes,
            device_streams_are_independent => device::streams_are_independent,
            device_events_are_waited_for_elsewhere => device::events_are_waited_for_elsewhere,
            device_replay_equals_eager => device::replay_equals_eager,
            device_replays_every_operation => replay::every_operation,
            device_zero_rows_are_nothing => device::zero_rows_are_nothing,
            device_empty_tables_are_safe => device::empty_tables_are_safe,
            device_arena_measures_what_a_pass_takes => device::arena_measures_what_a_pass_takes,
            device_arena_epochs_are_checked => device::arena_epochs_are_checked,
            device_mismatches_are_refused => device::mismatches_are_refused,
            device_weight_formats => device::weight_formats,
        ] }
    };
}

/// One `#[test]` per case on the device that an expression makes, with [`Options`] or all of them.
///
/// `suite!(device)`, `suite!(device, options)`; with `optional` in front of the device it is an
/// `Option`, and where it is `None` the suite says that it was skipped.
#[macro_export]
macro_rules! suite {
    (optional $device:expr) => {
        $crate::suite!(optional $device, $crate::Options::FULL);
    };
    (optional $device:expr, $options:expr) => {
        $crate::for_each_case!([$crate::tests_of_cases] ($device) ($options));
    };
    ($device:expr) => {
        $crate::suite!(optional ::core::option::Option::Some($device));
    };
    ($device:expr, $options:expr) => {
        $crate::suite!(optional ::core::option::Option::Some($device), $options);
    };
}

/// What [`suite!`] expands to.
#[doc(hidden)]
#[macro_export]
macro_rules! tests_of_cases {
    (($device:expr) ($options:expr) [$($name:ident => $module:ident :: $function:ident,)*]) => {
        $(
            #[test]
            fn $name() {
                $crate::run(module_path!(), stringify!($name), $device, &$options);
            }
        )*
    };
}

macro_rules! table_of_cases {
    ([$($name:ident => $module:ident :: $function:ident,)*]) => {
        vec![$(Case { name: stringify!($name), run: cases::$module::$function::<D> },)*]
    };
}

/// A case for devices of type `D`.
#[derive(Clone, Copy)]
pub struct Case<D> {
    /// Its name: the operation's first, or `device`.
    pub name: &'static str,
    /// Panics if the device fails it.
    pub run: fn(&D, &Options),
}

impl<D> Debug for Case<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Every case, in the order of the operations.
pub fn cases<D: Kernels>() -> Vec<Case<D>> {
    for_each_case!([table_of_cases])
}

/// Runs the case `name` of the suite that stands in module `suite`. If there is no device to run it on,
/// says so, once for each suite.
///
/// # Panics
/// If the device fails the case, or no case has this name.
pub fn run<D: Kernels>(suite: &str, name: &str, device: Option<D>, options: &Options) {
    static ABSENT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let case = cases::<D>().into_iter().find(|case| case.name == name);
    let case = case.unwrap_or_else(|| panic!("no case is named {name}"));
    match device {
        Some(device) => (case.run)(&device, options),
        None => {
            if ABSENT.lock().expect("nothing panics with it").insert(suite.into()) {
                rig::skip(suite, "this machine", "it does not have the device");
            }
        }
    }
}
