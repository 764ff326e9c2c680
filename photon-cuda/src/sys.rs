//! The driver's functions, as far as we call them.
//!
//! A table of our own instead of bindings: it holds only what every driver from CUDA 12.0 on has, an
//! absent driver or function is an error and not a panic, and a code that is new is a number and not an
//! undefined value of an enum.
#![allow(unsafe_code, reason = "calls the driver")]

use std::{
    ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_void},
    ptr,
    sync::OnceLock,
};

use crate::library::{self, functions};

/// `CUresult`: zero is success.
pub(crate) type Code = c_int;
/// `CUdevice`: an ordinal.
pub(crate) type Ordinal = c_int;
/// `CUdeviceptr`.
pub(crate) type Address = u64;
/// `CUcontext`, `CUstream`, `CUevent`, `CUmodule`, `CUfunction`, `CUgraph` and `CUgraphExec`.
pub(crate) type Handle = *mut c_void;

pub(crate) const OUT_OF_MEMORY: Code = 2;
pub(crate) const NO_DEVICE: Code = 100;
/// `cuInit` where the process may not open the device files.
pub(crate) const OPERATING_SYSTEM: Code = 304;
pub(crate) const SYSTEM_DRIVER_MISMATCH: Code = 803;

pub(crate) const ATTRIBUTE_MULTIPROCESSORS: c_int = 16;
pub(crate) const ATTRIBUTE_CAPABILITY_MAJOR: c_int = 75;
pub(crate) const ATTRIBUTE_CAPABILITY_MINOR: c_int = 76;
pub(crate) const ATTRIBUTE_SHARED_OPTIN: c_int = 97;
pub(crate) const FUNCTION_STATIC_SHARED: c_int = 1;
pub(crate) const FUNCTION_MAX_DYNAMIC_SHARED: c_int = 8;
pub(crate) const STREAM_NON_BLOCKING: c_uint = 1;
pub(crate) const EVENT_DEFAULT: c_uint = 0;
pub(crate) const EVENT_DISABLE_TIMING: c_uint = 2;
pub(crate) const CAPTURE_RELAXED: c_int = 2;
/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`.
pub(crate) const LAUNCH_STARTS_EARLY: c_int = 6;

/// `CUlaunchConfig`.
#[repr(C)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared_bytes: c_uint,
    pub(crate) stream: Handle,
    pub(crate) attributes: *mut LaunchAttribute,
    pub(crate) num_attributes: c_uint,
}

/// `CUlaunchAttribute`; the value is a union of 64 bytes, of which an int is the first four.
#[repr(C, align(8))]
pub(crate) struct LaunchAttribute {
    pub(crate) id: c_int,
    pub(crate) pad: c_int,
    pub(crate) value: [c_int; 16],
}

functions! {
    /// The driver.
    pub(crate) Functions {
        cuInit: fn(c_uint) -> Code,
        cuDriverGetVersion: fn(*mut c_int) -> Code,
        cuGetErrorName: fn(Code, *mut *const c_char) -> Code,
        cuGetErrorString: fn(Code, *mut *const c_char) -> Code,
        cuDeviceGetCount: fn(*mut c_int) -> Code,
        cuDeviceGet: fn(*mut Ordinal, c_int) -> Code,
        cuDeviceGetName: fn(*mut c_char, c_int, Ordinal) -> Code,
        cuDeviceGetAttribute: fn(*mut c_int, c_int, Ordinal) -> Code,
        cuDevicePrimaryCtxRetain: fn(*mut Handle, Ordinal) -> Code,
        cuDevicePrimaryCtxRelease_v2: fn(Ordinal) -> Code,
        cuCtxSetCurrent: fn(Handle) -> Code,
        cuMemGetInfo_v2: fn(*mut usize, *mut usize) -> Code,
        cuMemAlloc_v2: fn(*mut Address, usize) -> Code,
        cuMemFree_v2: fn(Address) -> Code,
        cuMemHostAlloc: fn(*mut *mut c_void, usize, c_uint) -> Code,
        cuMemFreeHost: fn(*mut c_void) -> Code,
        cuMemcpyHtoDAsync_v2: fn(Address, *const c_void, usize, Handle) -> Code,
        cuMemcpyDtoHAsync_v2: fn(*mut c_void, Address, usize, Handle) -> Code,
        cuMemcpyDtoDAsync_v2: fn(Address, Address, usize, Handle) -> Code,
        cuMemsetD8Async: fn(Address, c_uchar, usize, Handle) -> Code,
        cuStreamCreate: fn(*mut Handle, c_uint) -> Code,
        cuStreamSynchronize: fn(Handle) -> Code,
        cuStreamDestroy_v2: fn(Handle) -> Code,
        cuStreamBeginCapture_v2: fn(Handle, c_int) -> Code,
        cuStreamEndCapture: fn(Handle, *mut Handle) -> Code,
        cuGraphInstantiateWithFlags: fn(*mut Handle, Handle, u64) -> Code,
        cuGraphDestroy: fn(Handle) -> Code,
        cuGraphExecDestroy: fn(Handle) -> Code,
        cuGraphLaunch: fn(Handle, Handle) -> Code,
        cuEventCreate: fn(*mut Handle, c_uint) -> Code,
        cuEventRecord: fn(Handle, Handle) -> Code,
        cuEventSynchronize: fn(Handle) -> Code,
        cuEventElapsedTime: fn(*mut f32, Handle, Handle) -> Code,
        cuEventDestroy_v2: fn(Handle) -> Code,
        cuModuleLoadData: fn(*mut Handle, *const c_void) -> Code,
        cuModuleGetFunction: fn(*mut Handle, Handle, *const c_char) -> Code,
        cuModuleUnload: fn(Handle) -> Code,
        cuFuncGetAttribute: fn(*mut c_int, c_int, Handle) -> Code,
        cuFuncSetAttribute: fn(Handle, c_int, c_int) -> Code,
        cuLaunchKernelEx: fn(*const LaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void) -> Code,
        cuTensorMapEncodeTiled: fn(
            *mut [u64; 16], c_int, c_uint, *mut c_void, *const u64, *const u64, *const c_uint,
            *const c_uint, c_int, c_int, c_int, c_int,
        ) -> Code,
    }
}

impl Functions {
    /// Opens the driver, once per process, and initializes it.
    ///
    /// # Errors
    /// Why there is none, and what to do.
    pub(crate) fn open() -> Result<&'static Functions, String> {
        static OPENED: OnceLock<Result<Functions, String>> = OnceLock::new();
        let opened = OPENED.get_or_init(|| {
            let names = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
            let library = library::open(&[names.to_owned()]).map_err(|_| {
                format!("there is no NVIDIA driver here ({names} was not found); install one")
            })?;
            let functions = Functions::load(library).map_err(|error| {
                format!(
                    "the NVIDIA driver is too old ({error}); install one for CUDA 12.0 or newer"
                )
            })?;
            // SAFETY: no preconditions.
            let code = unsafe { (functions.cuInit)(0) };
            match code {
                0 => Ok(functions),
                NO_DEVICE => Err("the NVIDIA driver finds no GPU".into()),
                OPERATING_SYSTEM => {
                    Err("the NVIDIA driver cannot open the GPU's device files: give \
                    this user, or this container, access to /dev/nvidia*"
                        .into())
                }
                SYSTEM_DRIVER_MISMATCH => {
                    Err("the NVIDIA driver's library and its kernel module are \
                    of different versions: restart the machine, or the container's runtime"
                        .into())
                }
                code => {
                    Err(format!("the NVIDIA driver does not start: {}", functions.explain(code)))
                }
            }
        });
        opened.as_ref().map_err(Clone::clone)
    }

    /// A code in words.
    pub(crate) fn explain(&self, code: Code) -> String {
        let text = |get: unsafe extern "C" fn(Code, *mut *const c_char) -> Code| {
            let mut text = ptr::null();
            // SAFETY: any code may be asked for, and `text` is there to be written to.
            let known = unsafe { get(code, &raw mut text) } == 0 && !text.is_null();
            // SAFETY: where the code is known, the driver gave a static string.
            known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        match (text(self.cuGetErrorName), text(self.cuGetErrorString)) {
            (Some(name), Some(words)) => format!("{words} ({name})"),
            _ => format!("error {code}"),
        }
    }
}
