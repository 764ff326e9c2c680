//! NVIDIA's run-time compiler: CUDA C++ in, a binary for one architecture out.
#![allow(unsafe_code, reason = "calls NVRTC")]

use std::{
    ffi::{CStr, CString, c_char, c_int},
    path::Path,
    ptr,
};

use crate::{
    library::{self, functions},
    source::{OPTIONS, Source, Target},
};

/// `nvrtcProgram`.
type Program = *mut std::ffi::c_void;
/// `nvrtcResult`: zero is success.
type Code = c_int;

functions! {
    /// NVRTC's functions, the same in CUDA 12 and 13.
    Functions {
        nvrtcVersion: fn(*mut c_int, *mut c_int) -> Code,
        nvrtcGetErrorString: fn(Code) -> *const c_char,
        nvrtcCreateProgram: fn(
            *mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char,
        ) -> Code,
        nvrtcDestroyProgram: fn(*mut Program) -> Code,
        nvrtcCompileProgram: fn(Program, c_int, *const *const c_char) -> Code,
        nvrtcGetProgramLogSize: fn(Program, *mut usize) -> Code,
        nvrtcGetProgramLog: fn(Program, *mut c_char) -> Code,
        nvrtcGetCUBINSize: fn(Program, *mut usize) -> Code,
        nvrtcGetCUBIN: fn(Program, *mut c_char) -> Code,
    }
}

/// The compiler.
#[derive(Debug)]
pub struct Nvrtc {
    functions: Functions,
    /// Such as (12, 9).
    version: (u32, u32),
}

/// What a compilation gave.
#[derive(Debug)]
pub struct Output {
    /// The binary.
    pub cubin: Vec<u8>,
    /// What the compiler said: warnings, and what was asked for with options.
    pub log: String,
}

impl Nvrtc {
    /// Opens the newest compiler whose binaries a driver of this version of CUDA loads.
    ///
    /// # Errors
    /// That there is none, and what was looked for.
    pub fn open(cuda_major: u32) -> Result<Self, String> {
        let majors: Vec<u32> = (12..=cuda_major.min(13)).rev().collect();
        Self::load(library::open(&library::names("nvrtc", &majors))?)
    }

    /// Opens a certain file.
    ///
    /// # Errors
    /// That it is not there, or is not NVRTC.
    pub fn open_file(path: &Path) -> Result<Self, String> {
        let library = library::load(path);
        Self::load(library.map_err(|error| format!("{}: {error}", path.display()))?)
    }

    fn load(library: libloading::Library) -> Result<Self, String> {
        let functions = Functions::load(library)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both places are there to be written to.
        let code = unsafe { (functions.nvrtcVersion)(&raw mut major, &raw mut minor) };
        let version = (major.unsigned_abs(), minor.unsigned_abs());
        let nvrtc = Nvrtc { functions, version };
        nvrtc.check(code, "nvrtcVersion")?;
        Ok(nvrtc)
    }

    /// The compiler's version.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Compiles `source` with every header, and with `options` besides those all kernels are compiled with.
    ///
    /// # Errors
    /// What the compiler said.
    pub fn compile(
        &self,
        source: &Source,
        target: Target,
        options: &[&str],
    ) -> Result<Output, String> {
        let target = target.name(self.version.0);
        let doing = |what: &str| format!("{what} of {} for {target}", source.name);
        let program = self.program(source)?;
        let all = OPTIONS.iter().chain(options).map(|&option| c_string(option));
        let all: Vec<_> = all.chain([c_string(&format!("--gpu-architecture={target}"))]).collect();
        let pointers: Vec<_> = all.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program was made above; the pointers are to strings that live until the call's end.
        let code = unsafe {
            let compile = self.functions.nvrtcCompileProgram;
            compile(program.raw, pointers.len() as c_int, pointers.as_ptr())
        };
        let log = self.log(&program)?;
        if code != 0 {
            return Err(format!("{} failed:\n{log}", doing("compilation")));
        }
        let mut size = 0;
        // SAFETY: the program is compiled, and `size` is there to be written to.
        let code = unsafe { (self.functions.nvrtcGetCUBINSize)(program.raw, &raw mut size) };
        self.check(code, &doing("size"))?;
        let mut cubin = vec![0; size];
        // SAFETY: the program is compiled, and the memory is as long as it said.
        let code =
            unsafe { (self.functions.nvrtcGetCUBIN)(program.raw, cubin.as_mut_ptr().cast()) };
        self.check(code, &doing("binary"))?;
        Ok(Output { cubin, log })
    }

    fn program(&self, source: &Source) -> Result<Created<'_>, String> {
        let headers: Vec<_> = Source::headers().iter().map(|h| c_string(h.text)).collect();
        let names: Vec<_> = Source::headers().iter().map(|h| c_string(h.name)).collect();
        let headers: Vec<_> = headers.iter().map(|text| text.as_ptr()).collect();
        let names: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        let (text, name) = (c_string(source.text), c_string(source.name));
        let mut raw = ptr::null_mut();
        // SAFETY: every pointer is to a string that lives until the call's end, which copies them; both
        // lists are as long as said.
        let code = unsafe {
            let create = self.functions.nvrtcCreateProgram;
            let count = headers.len() as c_int;
            create(
                &raw mut raw,
                text.as_ptr(),
                name.as_ptr(),
                count,
                headers.as_ptr(),
                names.as_ptr(),
            )
        };
        self.check(code, &format!("making a program of {}", source.name))?;
        Ok(Created { raw, functions: &self.functions })
    }

    fn log(&self, program: &Created<'_>) -> Result<String, String> {
        let mut size = 0;
        // SAFETY: the program lives, and `size` is there to be written to.
        let code = unsafe { (self.functions.nvrtcGetProgramLogSize)(program.raw, &raw mut size) };
        self.check(code, "the log's size")?;
        let mut log = vec![0u8; size];
        // SAFETY: the program lives, and the memory is as long as it said.
        let code =
            unsafe { (self.functions.nvrtcGetProgramLog)(program.raw, log.as_mut_ptr().cast()) };
        self.check(code, "the log")?;
        let text = String::from_utf8_lossy(&log);
        Ok(text.trim_end_matches('\0').trim().to_owned())
    }

    fn check(&self, code: Code, doing: &str) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: any code may be asked for.
        let text = unsafe { (self.functions.nvrtcGetErrorString)(code) };
        // SAFETY: the answer is a static string, whatever the code.
        let text = unsafe { CStr::from_ptr(text) };
        Err(format!("{doing}: NVRTC says {}", text.to_string_lossy()))
    }
}

/// A program, until it is dropped.
struct Created<'a> {
    raw: Program,
    functions: &'a Functions,
}

impl Drop for Created<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was made by this library and is destroyed only here.
        unsafe { (self.functions.nvrtcDestroyProgram)(&raw mut self.raw) };
    }
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("sources and options have no zero byte")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_compiler_is_an_error_with_its_name() {
        let error = Nvrtc::open_file(Path::new("no-such-libnvrtc.so")).unwrap_err();
        assert!(error.contains("no-such-libnvrtc.so"), "{error}");
    }
}
