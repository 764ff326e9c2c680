//! The real driver.
//!
//! Memory is taken with `cuMemAlloc` and not from a pool: nothing allocates after start-up, and freeing
//! then waits for the device, which is what makes dropping a buffer safe at any time.
#![allow(unsafe_code, reason = "calls the driver")]

use std::{
    collections::HashMap,
    env,
    ffi::{CString, c_int, c_void},
    fmt,
    ops::Range,
    ptr::{self, NonNull},
    sync::{Arc, Mutex, PoisonError},
};

use photon_core::{DType, Error, MemoryInfo, Result};

use crate::{
    binaries::{self, Binaries, Origins},
    cache::Cache,
    driver::{Driver, Facts, Launch, Memory, TensorMap, TensorMapBits},
    sys::{self, Address, Code, Functions, Handle},
};

/// Set to have every launch waited for, so that a failure names its kernel.
const SYNC_VARIABLE: &str = "PHOTON_CUDA_SYNC";
/// The oldest driver: it has everything in `sys`.
const OLDEST_DRIVER: u32 = 12_000;

/// An NVIDIA GPU. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Ffi(Arc<Context>);

/// The device's primary context.
struct Context {
    functions: &'static Functions,
    ordinal: sys::Ordinal,
    raw: Handle,
    facts: Facts,
    modules: Vec<Handle>,
    origins: Origins,
    kernels: Mutex<HashMap<&'static str, Handle>>,
    syncs: bool,
}

// SAFETY: the driver's functions may be called from any thread on handles of any thread.
unsafe impl Send for Context {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Context {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("ordinal", &self.ordinal)
            .field("facts", &self.facts)
            .finish()
    }
}

fn unavailable(why: String) -> Error {
    Error::Unavailable { device: "cuda".into(), why }
}

/// How many GPUs the driver finds, and its version.
///
/// # Errors
/// Why there is no driver.
pub(crate) fn count() -> std::result::Result<(usize, u32), String> {
    let functions = Functions::open()?;
    let (mut count, mut version) = (0, 0);
    // SAFETY: the driver is initialized, and `count` is there to be written to.
    let code = unsafe { (functions.cuDeviceGetCount)(&raw mut count) };
    // SAFETY: as above.
    let other = unsafe { (functions.cuDriverGetVersion)(&raw mut version) };
    match code.max(other) {
        0 => Ok((count.unsigned_abs() as usize, version.unsigned_abs())),
        code => Err(format!("the NVIDIA driver does not answer: {}", functions.explain(code))),
    }
}

/// What the driver says of a GPU, without making anything on it.
pub(crate) fn facts(ordinal: usize) -> std::result::Result<Facts, String> {
    let (count, driver_version) = count()?;
    let device = c_int::try_from(ordinal).ok().filter(|_| ordinal < count);
    let Some(device) = device else {
        let s = if count == 1 { "" } else { "s" };
        return Err(format!("there is no GPU {ordinal}: the driver finds {count} GPU{s}"));
    };
    let functions = Functions::open()?;
    let check = |code: Code| match code {
        0 => Ok(()),
        code => Err(format!("GPU {ordinal} does not answer: {}", functions.explain(code))),
    };
    let mut raw = 0;
    // SAFETY: the driver is initialized, and `raw` is there to be written to.
    check(unsafe { (functions.cuDeviceGet)(&raw mut raw, device) })?;
    let mut name = [0u8; 256];
    // SAFETY: the memory is as long as said; the driver ends the name with a zero.
    check(unsafe { (functions.cuDeviceGetName)(name.as_mut_ptr().cast(), 256, raw) })?;
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: `value` is there to be written to.
        check(unsafe { (functions.cuDeviceGetAttribute)(&raw mut value, which, raw) })?;
        Ok::<_, String>(value.unsigned_abs())
    };
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    Ok(Facts {
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        capability: (
            attribute(sys::ATTRIBUTE_CAPABILITY_MAJOR)?,
            attribute(sys::ATTRIBUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(sys::ATTRIBUTE_MULTIPROCESSORS)?,
        shared_bytes: attribute(sys::ATTRIBUTE_SHARED_OPTIN)?,
        driver_version,
    })
}

impl Ffi {
    /// Opens a GPU by its ordinal, and loads every kernel.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with the reason and what to do.
    pub fn open(ordinal: usize) -> Result<Self> {
        let facts = facts(ordinal).map_err(unavailable)?;
        if facts.driver_version < OLDEST_DRIVER {
            return Err(unavailable(format!(
                "the NVIDIA driver is for CUDA {}; install one for CUDA {} or newer",
                version(facts.driver_version),
                version(OLDEST_DRIVER)
            )));
        }
        let Binaries { cubins, origins } =
            binaries::load(&facts, &Cache::from_env()).map_err(unavailable)?;
        let functions = Functions::open().map_err(unavailable)?;
        let ordinal = ordinal as sys::Ordinal;
        let mut raw = ptr::null_mut();
        // SAFETY: the ordinal is a device's (`facts` found it), and `raw` is there to be written to.
        let code = unsafe { (functions.cuDevicePrimaryCtxRetain)(&raw mut raw, ordinal) };
        if code != 0 {
            let why = functions.explain(code);
            return Err(unavailable(format!("{} cannot be used: {why}", facts.name)));
        }
        let mut context = Context {
            functions,
            ordinal,
            raw,
            facts,
            modules: Vec::new(),
            origins,
            kernels: Mutex::default(),
            syncs: env::var_os(SYNC_VARIABLE).is_some(),
        };
        context.enter("opening the device")?;
        for cubin in &cubins {
            let mut module = ptr::null_mut();
            // SAFETY: `cubin` is a whole binary (it came from the compiler, or with its digest), and
            // `module` is there to be written to.
            let code =
                unsafe { (functions.cuModuleLoadData)(&raw mut module, cubin.as_ptr().cast()) };
            context.check(code, "loading kernels")?;
            context.modules.push(module);
        }
        Ok(Ffi(Arc::new(context)))
    }

    /// Where the kernels came from, in words.
    pub(crate) fn describe(&self) -> String {
        let Origins { prebuilt, cached, compiled } = self.0.origins;
        format!(
            "kernels       {prebuilt} files prebuilt, {cached} from the cache, {compiled} compiled now"
        )
    }

    pub(crate) fn lost(&self, doing: &str, why: String) -> Error {
        self.0.lost(doing, why)
    }

    fn buffer(&self, bytes: usize) -> Result<Address> {
        let context = &self.0;
        context.enter("allocating")?;
        let mut address = 0;
        // SAFETY: `address` is there to be written to.
        let code = unsafe { (context.functions.cuMemAlloc_v2)(&raw mut address, bytes.max(1)) };
        if code == 0 {
            return Ok(address);
        }
        let MemoryInfo { free_bytes, .. } = self.memory();
        // An absurd size is an invalid value to the driver.
        if code == sys::OUT_OF_MEMORY || bytes as u64 > free_bytes {
            return Err(Error::OutOfMemory {
                device: context.facts.name.clone(),
                purpose: "a buffer".into(),
                requested_bytes: bytes as u64,
                free_bytes,
            });
        }
        Err(context.lost("allocating", context.functions.explain(code)))
    }
}

/// 12080 as 12.8.
pub(crate) fn version(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

impl Context {
    fn lost(&self, doing: &str, why: String) -> Error {
        Error::DeviceLost { device: self.facts.name.clone(), doing: doing.into(), why }
    }

    fn check(&self, code: Code, doing: &str) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(self.lost(doing, self.functions.explain(code))) }
    }

    /// Makes this context the thread's own: the driver's functions work on that.
    fn enter(&self, doing: &str) -> Result<()> {
        // SAFETY: the context is retained until it is dropped.
        let code = unsafe { (self.functions.cuCtxSetCurrent)(self.raw) };
        self.check(code, doing)
    }

    /// The kernel of this name, allowed all the shared memory there is.
    fn kernel(&self, name: &'static str) -> Result<Handle> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&kernel) = kernels.get(name) {
            return Ok(kernel);
        }
        let c_name = CString::new(name).expect("a kernel's name has no zero byte");
        let find = |&module: &Handle| {
            let mut kernel = ptr::null_mut();
            // SAFETY: the module is loaded until the context is dropped; the name is a C string, and
            // `kernel` is there to be written to.
            let code = unsafe {
                (self.functions.cuModuleGetFunction)(&raw mut kernel, module, c_name.as_ptr())
            };
            (code == 0).then_some(kernel)
        };
        let Some(kernel) = self.modules.iter().find_map(find) else {
            return Err(self.lost(name, "no source has a kernel of this name".into()));
        };
        let mut fixed = 0;
        // SAFETY: the kernel was found above, and `fixed` is there to be written to.
        let code = unsafe {
            (self.functions.cuFuncGetAttribute)(&raw mut fixed, sys::FUNCTION_STATIC_SHARED, kernel)
        };
        self.check(code, name)?;
        let most = self.facts.shared_bytes.saturating_sub(fixed.unsigned_abs()) as c_int;
        // SAFETY: the kernel was found above.
        let code = unsafe {
            (self.functions.cuFuncSetAttribute)(kernel, sys::FUNCTION_MAX_DYNAMIC_SHARED, most)
        };
        self.check(code, name)?;
        kernels.insert(name, kernel);
        Ok(kernel)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.enter("closing").is_err() {
            return;
        }
        // Failures here have nobody to go to: the device is being given up.
        for &module in &self.modules {
            // SAFETY: loaded by `open` and unloaded only here; streams, which launch its kernels, hold the
            // context.
            let _ = unsafe { (self.functions.cuModuleUnload)(module) };
        }
        // SAFETY: retained by `open`, and released only here.
        let _ = unsafe { (self.functions.cuDevicePrimaryCtxRelease_v2)(self.ordinal) };
    }
}

/// Device memory. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Buffer(Arc<Allocation>);

#[derive(Debug)]
struct Allocation {
    gpu: Ffi,
    address: Address,
    bytes: usize,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let context = &self.gpu.0;
        if context.enter("freeing").is_ok() {
            // SAFETY: allocated by `alloc` and freed only here; `cuMemFree` waits for work that uses it.
            let _ = unsafe { (context.functions.cuMemFree_v2)(self.address) };
        }
    }
}

impl Memory for Buffer {
    fn address(&self) -> u64 {
        self.0.address
    }

    fn len(&self) -> usize {
        self.0.bytes
    }
}

/// Host memory that the device reaches by itself.
#[derive(Debug)]
pub struct Pinned {
    gpu: Ffi,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Pinned {}
// SAFETY: shared references only read.
unsafe impl Sync for Pinned {}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: allocated with this length and zeroed by `pinned`, and freed only by `drop`; the device
        // writes there only while the value is inside a `Pending`, which lends it to nobody.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl AsMut<[u8]> for Pinned {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_ref`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let context = &self.gpu.0;
        if context.enter("freeing").is_ok() {
            // SAFETY: allocated by `pinned` and freed only here; nothing copies to or from it any more
            // (the rule of `Driver::copy_in` and `Driver::copy_out`).
            let _ = unsafe { (context.functions.cuMemFreeHost)(self.start.as_ptr().cast()) };
        }
    }
}

/// A queue of work.
#[derive(Debug)]
pub struct Stream {
    gpu: Ffi,
    raw: Handle,
    capturing: bool,
}

impl Stream {
    /// For other libraries than the driver.
    pub(crate) fn raw(&self) -> Handle {
        self.raw
    }
}

// SAFETY: the driver's functions may be called from any thread on streams of any thread.
unsafe impl Send for Stream {}

impl Drop for Stream {
    fn drop(&mut self) {
        let context = &self.gpu.0;
        if context.enter("closing a stream").is_ok() {
            // SAFETY: created by `stream` and destroyed only below.
            let _ = unsafe { (context.functions.cuStreamSynchronize)(self.raw) };
            // SAFETY: as above.
            let _ = unsafe { (context.functions.cuStreamDestroy_v2)(self.raw) };
        }
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub struct Event {
    gpu: Ffi,
    raw: Handle,
}

// SAFETY: the driver's functions may be called from any thread on events of any thread.
unsafe impl Send for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        let context = &self.gpu.0;
        if context.enter("dropping an event").is_ok() {
            // SAFETY: created by `record` and destroyed only here; the driver keeps what it still needs.
            let _ = unsafe { (context.functions.cuEventDestroy_v2)(self.raw) };
        }
    }
}

/// Captured work, ready to run.
#[derive(Debug)]
pub struct Graph {
    gpu: Ffi,
    raw: Handle,
}

// SAFETY: a graph is used by one thread at a time, which its owner's `&mut` stream sees to.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let context = &self.gpu.0;
        if context.enter("dropping a graph").is_ok() {
            // SAFETY: instantiated by `end_capture` and destroyed only here; the driver does so when the
            // last replay has run.
            let _ = unsafe { (context.functions.cuGraphExecDestroy)(self.raw) };
        }
    }
}

impl Driver for Ffi {
    type Memory = Buffer;
    type Pinned = Pinned;
    type Stream = Stream;
    type Event = Event;
    type Graph = Graph;

    const DEFERS: bool = false;

    fn facts(&self) -> &Facts {
        &self.0.facts
    }

    fn memory(&self) -> MemoryInfo {
        let (mut free, mut total) = (0, 0);
        if self.0.enter("asking for memory").is_ok() {
            // SAFETY: both places are there to be written to; where it fails they stay zero.
            let _ = unsafe { (self.0.functions.cuMemGetInfo_v2)(&raw mut free, &raw mut total) };
        }
        MemoryInfo { free_bytes: free as u64, total_bytes: total as u64, is_dedicated: true }
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        let address = self.buffer(bytes)?;
        let buffer = Buffer(Arc::new(Allocation { gpu: self.clone(), address, bytes }));
        let stream = self.stream()?;
        // SAFETY: the memory was allocated above, with this many bytes.
        let code =
            unsafe { (self.0.functions.cuMemsetD8Async)(address, 0, bytes.max(1), stream.raw) };
        self.0.check(code, "clearing memory")?;
        // SAFETY: the stream lives.
        let code = unsafe { (self.0.functions.cuStreamSynchronize)(stream.raw) };
        self.0.check(code, "clearing memory")?;
        Ok(buffer)
    }

    fn pinned(&self, bytes: usize) -> Result<Pinned> {
        self.0.enter("allocating host memory")?;
        let mut start = ptr::null_mut();
        // SAFETY: `start` is there to be written to.
        let code = unsafe { (self.0.functions.cuMemHostAlloc)(&raw mut start, bytes.max(1), 0) };
        if code == sys::OUT_OF_MEMORY {
            return Err(Error::OutOfMemory {
                device: self.0.facts.name.clone(),
                purpose: "pinned host memory".into(),
                requested_bytes: bytes as u64,
                free_bytes: self.memory().free_bytes,
            });
        }
        self.0.check(code, "allocating host memory")?;
        let missing = || self.0.lost("allocating host memory", "the driver gave none".into());
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(missing)?;
        // SAFETY: the driver gave at least as many bytes.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Pinned { gpu: self.clone(), start, bytes })
    }

    fn stream(&self) -> Result<Stream> {
        self.0.enter("opening a stream")?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is there to be written to.
        let code =
            unsafe { (self.0.functions.cuStreamCreate)(&raw mut raw, sys::STREAM_NON_BLOCKING) };
        self.0.check(code, "opening a stream")?;
        Ok(Stream { gpu: self.clone(), raw, capturing: false })
    }

    unsafe fn copy_in(
        &self,
        stream: &mut Stream,
        to: &Buffer,
        offset: usize,
        from: &[u8],
    ) -> Result<()> {
        self.0.enter("uploading")?;
        let (address, source) = (to.address() + offset as u64, from.as_ptr().cast());
        // SAFETY: the caller vouches for both ends.
        let code = unsafe {
            (self.0.functions.cuMemcpyHtoDAsync_v2)(address, source, from.len(), stream.raw)
        };
        self.0.check(code, "uploading")
    }

    unsafe fn copy_out(
        &self,
        stream: &mut Stream,
        from: &Buffer,
        range: Range<usize>,
        into: &mut Pinned,
    ) -> Result<()> {
        self.0.enter("reading back")?;
        let (address, target) = (from.address() + range.start as u64, into.start.as_ptr().cast());
        // SAFETY: the caller vouches for both ends.
        let code = unsafe {
            (self.0.functions.cuMemcpyDtoHAsync_v2)(target, address, range.len(), stream.raw)
        };
        self.0.check(code, "reading back")
    }

    unsafe fn launch(&self, stream: &mut Stream, launch: &Launch<'_>) -> Result<()> {
        let context = &self.0;
        context.enter(launch.kernel)?;
        let kernel = context.kernel(launch.kernel)?;
        let mut early =
            sys::LaunchAttribute { id: sys::LAUNCH_STARTS_EARLY, pad: 0, value: [0; 16] };
        early.value[0] = 1;
        let config = sys::LaunchConfig {
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            stream: stream.raw,
            attributes: &raw mut early,
            num_attributes: u32::from(context.facts.capability >= (9, 0)),
        };
        // Copied to where any type of argument may lie.
        let mut args = [TensorMapBits([0; 16]); 32];
        bytemuck::cast_slice_mut(&mut args)[..launch.args.len()].copy_from_slice(launch.args);
        let mut pointers: [*mut c_void; 1] = [args.as_mut_ptr().cast()];
        // SAFETY: the kernel is one of ours and takes one argument, which the driver copies; the caller
        // vouches for what is in it.
        let code = unsafe {
            let launch = context.functions.cuLaunchKernelEx;
            launch(&raw const config, kernel, pointers.as_mut_ptr(), ptr::null_mut())
        };
        context.check(code, launch.kernel)?;
        if context.syncs && !stream.capturing {
            // SAFETY: the stream lives.
            let code = unsafe { (context.functions.cuStreamSynchronize)(stream.raw) };
            context.check(code, launch.kernel)?;
        }
        Ok(())
    }

    fn tensor_map(&self, map: &TensorMap) -> Option<TensorMapBits> {
        if self.0.facts.capability < (9, 0) {
            return None;
        }
        // `CUtensorMapDataType`.
        let dtype = match map.dtype {
            DType::F16 => 6,
            DType::Bf16 => 9,
            DType::U8 | DType::Fp8 | DType::Int8 => 0,
            DType::F32 | DType::I32 => return None,
        };
        const NO_INTERLEAVE: c_int = 0;
        const SWIZZLE_128: c_int = 3;
        const L2_PROMOTION_256: c_int = 3;
        const FILL_WITH_ZERO: c_int = 0;
        let mut bits = TensorMapBits([0; 16]);
        let (address, one) = (map.address as *mut c_void, [1u32; 2]);
        // SAFETY: every pointer is to as many numbers as the rank says (one stride less); the address is
        // only written down.
        let code = unsafe {
            (self.0.functions.cuTensorMapEncodeTiled)(
                &raw mut bits.0,
                dtype,
                2,
                address,
                map.dims.as_ptr(),
                &raw const map.row_bytes,
                map.tile.as_ptr(),
                one.as_ptr(),
                NO_INTERLEAVE,
                SWIZZLE_128,
                L2_PROMOTION_256,
                FILL_WITH_ZERO,
            )
        };
        (code == 0).then_some(bits)
    }

    fn record(&self, stream: &mut Stream) -> Result<Event> {
        self.0.enter("submitting")?;
        self.mark(stream, sys::EVENT_DISABLE_TIMING)
    }

    fn wait(&self, event: &Event) -> Result<()> {
        self.0.enter("waiting for submitted work")?;
        // SAFETY: the event lives.
        let code = unsafe { (self.0.functions.cuEventSynchronize)(event.raw) };
        self.0.check(code, "waiting for submitted work")
    }

    fn begin_capture(&self, stream: &mut Stream) -> Result<()> {
        self.0.enter("capturing")?;
        // Relaxed: other threads allocate meanwhile, and a kernel's first use may load it.
        // SAFETY: the stream lives and captures nothing (the generic stream sees to it).
        let code =
            unsafe { (self.0.functions.cuStreamBeginCapture_v2)(stream.raw, sys::CAPTURE_RELAXED) };
        stream.capturing = code == 0;
        self.0.check(code, "capturing")
    }

    fn end_capture(&self, stream: &mut Stream) -> Result<Graph> {
        self.0.enter("capturing")?;
        stream.capturing = false;
        let mut template = ptr::null_mut();
        // SAFETY: the stream captures, and `template` is there to be written to.
        let code = unsafe { (self.0.functions.cuStreamEndCapture)(stream.raw, &raw mut template) };
        self.0.check(code, "capturing")?;
        let mut raw = ptr::null_mut();
        // SAFETY: the graph was captured above, and `raw` is there to be written to.
        let code =
            unsafe { (self.0.functions.cuGraphInstantiateWithFlags)(&raw mut raw, template, 0) };
        // SAFETY: captured above and destroyed only here; what was instantiated does not need it.
        let _ = unsafe { (self.0.functions.cuGraphDestroy)(template) };
        self.0.check(code, "making a graph")?;
        Ok(Graph { gpu: self.clone(), raw })
    }

    unsafe fn replay(&self, stream: &mut Stream, graph: &Graph) -> Result<()> {
        self.0.enter("replaying")?;
        // SAFETY: both live; the caller vouches for what the graph touches.
        let code = unsafe { (self.0.functions.cuGraphLaunch)(graph.raw, stream.raw) };
        self.0.check(code, "replaying")
    }
}

impl Ffi {
    /// Copies all of a buffer to another that is as large.
    pub(crate) fn copy_within(
        &self,
        stream: &mut Stream,
        from: &Buffer,
        to: &Buffer,
    ) -> Result<()> {
        assert_eq!(from.len(), to.len(), "copy_within");
        self.0.enter("copying")?;
        // SAFETY: both are as long as said, and freeing them waits for the device.
        let code = unsafe {
            let copy = self.0.functions.cuMemcpyDtoDAsync_v2;
            copy(to.address(), from.address(), from.len(), stream.raw)
        };
        self.0.check(code, "copying")
    }

    fn mark(&self, stream: &Stream, flags: u32) -> Result<Event> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is there to be written to.
        let code = unsafe { (self.0.functions.cuEventCreate)(&raw mut raw, flags) };
        self.0.check(code, "submitting")?;
        let event = Event { gpu: self.clone(), raw };
        // SAFETY: both live.
        let code = unsafe { (self.0.functions.cuEventRecord)(raw, stream.raw) };
        self.0.check(code, "submitting")?;
        Ok(event)
    }

    /// Seconds that `work` takes on the device, on average over `runs` of it after one to warm up.
    pub(crate) fn seconds(
        &self,
        stream: &mut Stream,
        runs: usize,
        mut work: impl FnMut(&mut Stream) -> Result<()>,
    ) -> Result<f64> {
        work(stream)?;
        let begun = self.mark(stream, sys::EVENT_DEFAULT)?;
        (0..runs).try_for_each(|_| work(stream))?;
        let ended = self.mark(stream, sys::EVENT_DEFAULT)?;
        self.wait(&ended)?;
        let mut milliseconds = 0.0;
        // SAFETY: both events have fired, and `milliseconds` is there to be written to.
        let code = unsafe {
            (self.0.functions.cuEventElapsedTime)(&raw mut milliseconds, begun.raw, ended.raw)
        };
        self.0.check(code, "measuring")?;
        Ok(f64::from(milliseconds) / 1e3 / runs as f64)
    }
}
