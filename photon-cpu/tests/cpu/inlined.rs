//! Vector code is compiled where the compiler knows that it may use the instructions.
use object::{Object, ObjectSymbol};

/// An intrinsic that was not inlined is a function of its own: what uses it lies outside of `Simd::run`, as a closure
/// does, and calls it for each vector, through memory, at a fraction of the speed.
#[test]
fn no_instruction_is_a_call() {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let program = object::File::parse(&*program).unwrap();
    let names: Vec<_> = program.symbols().filter_map(|symbol| symbol.name().ok()).collect();
    assert!(names.iter().any(|name| name.contains("photon_cpu")), "symbols to look at");
    // Loads and stores are what is left of dot products on levels that have none, which nothing is packed for.
    let is_intrinsic = |name: &&&str| {
        let is_moved = name.contains("loadu_ps") || name.contains("storeu_ps");
        let is_vector = name.contains("_mm256_") || name.contains("_mm512_");
        name.contains("core_arch") && is_vector && !is_moved
    };
    let called: Vec<_> = names.iter().filter(is_intrinsic).collect();
    assert!(called.is_empty(), "functions: {called:#?}");
}
