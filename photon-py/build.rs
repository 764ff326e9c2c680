//! On macOS a linker must be told that Python's functions are found when the module is loaded.
fn main() {
    pyo3_build_config::add_extension_module_link_args();
}
