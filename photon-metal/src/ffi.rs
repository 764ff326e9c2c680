//! What is safe to call of Metal: the real driver, and the only file that needs macOS.
//!
//! # Rules
//! - Memory is one buffer each, shared with the processor and not tracked: the order of launches is ours
//!   (barriers inside of a submit, a fence from one submit of a queue to the next).
//! - Kernels get addresses, not bindings, so that every buffer must be resident whenever anything runs: all
//!   are in one residency set that every queue has (macOS 15), or are named once in every submit.
//! - Metal's devices, queues, buffers and pipelines may be used by all threads at once; a command buffer and its
//!   encoder only live inside of one call here until they are committed, and are only asked for their state
//!   then.
#![allow(unsafe_code, reason = "calls Metal, and shares its objects between threads")]

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ffi::c_void,
    fmt,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use objc2::{
    available,
    rc::{Retained, autoreleasepool},
    runtime::ProtocolObject,
};
use objc2_foundation::{NSString, NSURL};
use objc2_metal::{
    MTLAllocation, MTLBarrierScope, MTLBuffer, MTLCommandBuffer, MTLCommandBufferStatus,
    MTLCommandEncoder, MTLCommandQueue, MTLCompileOptions, MTLComputeCommandEncoder,
    MTLComputePipelineState, MTLCreateSystemDefaultDevice, MTLDevice, MTLDispatchType, MTLFence,
    MTLGPUFamily, MTLLanguageVersion, MTLLibrary, MTLResidencySet, MTLResidencySetDescriptor,
    MTLResource, MTLResourceOptions, MTLResourceUsage, MTLSize,
};
use photon_core::{Error, MemoryInfo, Result};

use crate::{
    driver::{self, Driver, Facts, Launch, THREADGROUP_BYTES},
    source::Source,
    work::{Step, Work},
};

/// Families that the kernels are written for: the oldest, M1, and one more than the newest known.
const FAMILIES: std::ops::Range<isize> = 7..12;

/// An object of Metal's that all threads may use. Cloning shares it.
struct Object<P: ?Sized + 'static>(Retained<ProtocolObject<P>>);

// SAFETY: Metal's documentation has devices, queues, resources, libraries, pipelines and residency sets used
// from any thread; of command buffers only those that are committed are kept, for their state.
unsafe impl<P: ?Sized> Send for Object<P> {}
// SAFETY: as above.
unsafe impl<P: ?Sized> Sync for Object<P> {}

impl<P: ?Sized> Clone for Object<P> {
    fn clone(&self) -> Self {
        Object(self.0.clone())
    }
}

impl<P: ?Sized> std::ops::Deref for Object<P> {
    type Target = ProtocolObject<P>;

    fn deref(&self) -> &ProtocolObject<P> {
        &self.0
    }
}

/// Metal. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Ffi(Arc<Inner>);

struct Inner {
    facts: Facts,
    device: Object<dyn MTLDevice>,
    residency: Arc<Residency>,
    /// The library that has a kernel, by its name.
    libraries: HashMap<String, Object<dyn MTLLibrary>>,
    /// What was made of kernels so far.
    pipelines: Mutex<HashMap<&'static str, Object<dyn MTLComputePipelineState>>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("facts", &self.facts).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unavailable(why: String) -> Error {
    Error::Unavailable { device: "metal".into(), why }
}

impl Ffi {
    /// Opens the machine's GPU and compiles the kernels.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: what is missing.
    pub fn open() -> Result<Self> {
        if !available!(macos = 13.0) {
            return Err(unavailable("macOS is older than 13; update it".into()));
        }
        let device = MTLCreateSystemDefaultDevice()
            .ok_or_else(|| unavailable("this Mac shows no GPU to programs".into()))?;
        let device = Object(device);
        let name = device.name().to_string();
        let family = FAMILIES.rev().find(|f| device.supportsFamily(MTLGPUFamily(1000 + f)));
        let Some(family) = family else {
            let why =
                "is older than Apple's family 7 (M1) or stands for a GPU in a virtual machine";
            return Err(unavailable(format!("{name} {why}; use --device cpu")));
        };
        let facts = Facts {
            name,
            family: u32::try_from(family).expect("at most 12"),
            has_bfloat: family >= 9 && available!(macos = 14.0),
            has_tensor_ops: family >= 10
                && available!(macos = 26.2)
                && device.supportsFamily(MTLGPUFamily::Metal4),
        };
        let libraries = libraries(&device, &facts)?;
        let residency = Arc::new(Residency::open(&device)?);
        let pipelines = Mutex::default();
        Ok(Ffi(Arc::new(Inner { facts, device, residency, libraries, pipelines })))
    }

    /// How many kernels there are for this GPU.
    pub fn num_kernels(&self) -> usize {
        self.0.libraries.len()
    }

    fn lost(&self, doing: &str, why: String) -> Error {
        Error::DeviceLost { device: self.0.facts.name.clone(), doing: doing.into(), why }
    }

    /// Makes a kernel ready to run, the first time.
    fn pipeline(&self, kernel: &'static str) -> Result<Object<dyn MTLComputePipelineState>> {
        if let Some(pipeline) = lock(&self.0.pipelines).get(kernel) {
            return Ok(pipeline.clone());
        }
        let library = self.0.libraries.get(kernel);
        let function = library.and_then(|l| l.newFunctionWithName(&NSString::from_str(kernel)));
        let function =
            function.ok_or_else(|| self.lost(kernel, "no source has this kernel".into()))?;
        let pipeline = self.0.device.newComputePipelineStateWithFunction_error(&function);
        let pipeline =
            pipeline.map_err(|e| self.lost(kernel, e.localizedDescription().to_string()))?;
        let pipeline = Object(pipeline);
        lock(&self.0.pipelines).insert(kernel, pipeline.clone());
        Ok(pipeline)
    }

    /// Compiles every kernel to the end: bytes of static threadgroup memory and threads of a threadgroup at
    /// most, by kernel.
    ///
    /// # Errors
    /// The first kernel that cannot be compiled.
    pub fn kernels(&self) -> Result<BTreeMap<String, (u32, u32)>> {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let measure = |(name, library): (&String, &Object<dyn MTLLibrary>)| {
            let fail = |why: String| self.lost(name, why);
            let function = library.newFunctionWithName(&NSString::from_str(name));
            let function = function.ok_or_else(|| fail("the library lost it".into()))?;
            let pipeline = self.0.device.newComputePipelineStateWithFunction_error(&function);
            let pipeline = pipeline.map_err(|e| fail(e.localizedDescription().to_string()))?;
            let bytes = number(pipeline.staticThreadgroupMemoryLength());
            Ok((name.clone(), (bytes, number(pipeline.maxTotalThreadsPerThreadgroup()))))
        };
        self.0.libraries.iter().map(measure).collect()
    }

    /// Encodes one launch.
    fn encode(
        &self,
        encoder: &ProtocolObject<dyn MTLComputeCommandEncoder>,
        launch: &Launch<'_>,
        last: &mut &'static str,
    ) -> Result<()> {
        let Launch { kernel, threadgroups, threads, threadgroup_bytes, args, .. } = *launch;
        if *last != kernel {
            let pipeline = self.pipeline(kernel)?;
            let most = pipeline.maxTotalThreadsPerThreadgroup();
            if threads.iter().product::<u32>() as usize > most {
                let why = format!("{threads:?} threads, of which this GPU allows {most}");
                return Err(self.lost(kernel, why));
            }
            encoder.setComputePipelineState(&pipeline);
            *last = kernel;
        }
        let bytes = NonNull::from(args).cast::<c_void>();
        // SAFETY: Metal copies the bytes, which live through the call; a stream asks for 4 KiB at most.
        unsafe { encoder.setBytes_length_atIndex(bytes, args.len(), 0) };
        if threadgroup_bytes > 0 {
            debug_assert!(threadgroup_bytes <= THREADGROUP_BYTES);
            let length = threadgroup_bytes.next_multiple_of(16) as usize;
            // SAFETY: the kernel declares memory at index 0 if a launch gives it a length.
            unsafe { encoder.setThreadgroupMemoryLength_atIndex(length, 0) };
        }
        encoder.dispatchThreadgroups_threadsPerThreadgroup(size(threadgroups), size(threads));
        Ok(())
    }
}

fn size([width, height, depth]: [u32; 3]) -> MTLSize {
    MTLSize { width: width as usize, height: height as usize, depth: depth as usize }
}

/// A source that was compiled when the program was, if it lies beside the program and this system takes it.
fn prebuilt(device: &Object<dyn MTLDevice>, name: &str) -> Option<Object<dyn MTLLibrary>> {
    let path = std::env::current_exe().ok()?.parent()?.join("metal-kernels").join(name);
    if !path.is_file() {
        return None;
    }
    let url = NSURL::fileURLWithPath(&NSString::from_str(path.to_str()?));
    device.newLibraryWithURL_error(&url).ok().map(Object)
}

/// Finds or compiles every source, as many at once as there are processors; by the names of their kernels.
fn libraries(
    device: &Object<dyn MTLDevice>,
    facts: &Facts,
) -> Result<HashMap<String, Object<dyn MTLLibrary>>> {
    let sources = Source::all().iter().filter(|s| facts.has_tensor_ops || !s.needs_tensor_ops());
    std::thread::scope(|scope| {
        let compile = |source: &'static Source| scope.spawn(move || library(device, facts, source));
        let compiling: Vec<_> = sources.map(compile).collect();
        let mut by_name = HashMap::new();
        for library in compiling {
            let library = library.join().expect("compiling does not panic")?;
            let names = library.functionNames();
            by_name.extend(names.iter().map(|name| (name.to_string(), library.clone())));
        }
        Ok(by_name)
    })
}

fn library(
    device: &Object<dyn MTLDevice>,
    facts: &Facts,
    source: &Source,
) -> Result<Object<dyn MTLLibrary>> {
    autoreleasepool(|_| {
        if let Some(library) = prebuilt(device, &source.library_name(facts.has_bfloat)) {
            return Ok(library);
        }
        let options = MTLCompileOptions::new();
        options.setLanguageVersion(match source.language(facts.has_bfloat) {
            "metal4.0" => MTLLanguageVersion::Version4_0,
            "metal3.1" => MTLLanguageVersion::Version3_1,
            _ => MTLLanguageVersion::Version3_0,
        });
        #[expect(deprecated, reason = "what replaces it came with macOS 15")]
        options.setFastMathEnabled(false);
        let text = NSString::from_str(&source.compiled(facts.has_bfloat));
        let library = device.newLibraryWithSource_options_error(&text, Some(&options));
        let library = library.map_err(|error| {
            let why = error.localizedDescription();
            unavailable(format!("Metal's compiler refuses {}: {why}", source.name))
        })?;
        Ok(Object(library))
    })
}

/// Which buffers the GPU must be able to reach.
struct Residency {
    /// From macOS 15 on.
    set: Option<Object<dyn MTLResidencySet>>,
    /// Before it: every buffer, by address.
    live: Mutex<BTreeMap<u64, Object<dyn MTLResource>>>,
}

impl Residency {
    fn open(device: &Object<dyn MTLDevice>) -> Result<Self> {
        let mut set = None;
        if available!(macos = 15.0) {
            let descriptor = MTLResidencySetDescriptor::new();
            let made = device.newResidencySetWithDescriptor_error(&descriptor);
            let made = made.map_err(|e| unavailable(e.localizedDescription().to_string()))?;
            set = Some(Object(made));
        }
        Ok(Residency { set, live: Mutex::default() })
    }

    fn add(&self, buffer: &Retained<ProtocolObject<dyn MTLBuffer>>) {
        match &self.set {
            Some(set) => {
                set.addAllocation(AsRef::<ProtocolObject<dyn MTLAllocation>>::as_ref(&**buffer));
                set.commit();
            }
            None => {
                let resource = ProtocolObject::from_retained(buffer.clone());
                lock(&self.live).insert(buffer.gpuAddress(), Object(resource));
            }
        }
    }

    fn remove(&self, buffer: &ProtocolObject<dyn MTLBuffer>) {
        match &self.set {
            Some(set) => {
                set.removeAllocation(AsRef::<ProtocolObject<dyn MTLAllocation>>::as_ref(buffer));
                set.commit();
            }
            None => drop(lock(&self.live).remove(&buffer.gpuAddress())),
        }
    }

    /// Names every buffer to an encoder, where no set does.
    fn apply(&self, encoder: &ProtocolObject<dyn MTLComputeCommandEncoder>) {
        let live = lock(&self.live);
        let mut all: Vec<_> = live.values().map(|resource| NonNull::from(&**resource)).collect();
        if let Some(first) = NonNull::new(all.as_mut_ptr()).filter(|_| !all.is_empty()) {
            let usage = MTLResourceUsage::Read | MTLResourceUsage::Write;
            // SAFETY: `all` holds as many resources as said, which `live`, locked meanwhile, keeps.
            unsafe { encoder.useResources_count_usage(first, all.len(), usage) };
        }
    }
}

/// Memory that the processor and the GPU share. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Buffer(Arc<Allocation>);

struct Allocation {
    buffer: Object<dyn MTLBuffer>,
    address: u64,
    host: NonNull<u8>,
    len: usize,
    residency: Arc<Residency>,
}

// SAFETY: `host` is an address of the buffer's own; what is read and written there is the stream's to order.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl fmt::Debug for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.len, self.address)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.residency.remove(&self.buffer);
    }
}

impl driver::Memory for Buffer {
    fn address(&self) -> u64 {
        self.0.address
    }

    fn host(&self) -> NonNull<u8> {
        self.0.host
    }

    fn len(&self) -> usize {
        self.0.len
    }
}

/// A queue, and what orders its submits.
pub struct Queue {
    raw: Object<dyn MTLCommandQueue>,
    fence: Object<dyn MTLFence>,
    submits: u64,
    state: Arc<Mutex<State>>,
}

/// What is known of a queue's submits.
#[derive(Default)]
struct State {
    /// Those whose end nobody has looked at, in order.
    pending: VecDeque<(u64, Object<dyn MTLCommandBuffer>)>,
    failed: Option<Error>,
}

impl State {
    /// Looks at the ends of submits up to one, all of which are done.
    fn settle(&mut self, last: u64, lost: impl Fn(String) -> Error) -> Result<()> {
        while let Some((_, done)) = self.pending.front().filter(|(number, _)| *number <= last) {
            let error = done.error();
            self.pending.pop_front();
            if let Some(error) = error {
                self.failed.get_or_insert_with(|| lost(error.localizedDescription().to_string()));
            }
        }
        self.failed.clone().map_or(Ok(()), Err)
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("submits", &self.submits).finish_non_exhaustive()
    }
}

/// The end of a submit.
#[derive(Clone)]
pub struct Event {
    number: u64,
    buffer: Object<dyn MTLCommandBuffer>,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Driver for Ffi {
    type Memory = Buffer;
    type Queue = Queue;
    type Event = Event;

    fn facts(&self) -> &Facts {
        &self.0.facts
    }

    fn memory(&self) -> MemoryInfo {
        let total_bytes = self.0.device.recommendedMaxWorkingSetSize();
        let used = self.0.device.currentAllocatedSize() as u64;
        let free_bytes = total_bytes.saturating_sub(used);
        MemoryInfo { free_bytes, total_bytes, is_dedicated: false }
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        let options =
            MTLResourceOptions::StorageModeShared | MTLResourceOptions::HazardTrackingModeUntracked;
        let MemoryInfo { free_bytes, .. } = self.memory();
        let fits = bytes as u64 <= free_bytes && bytes <= self.0.device.maxBufferLength();
        // Metal clears it.
        let buffer =
            fits.then(|| self.0.device.newBufferWithLength_options(bytes.max(16), options));
        let Some(buffer) = buffer.flatten() else {
            return Err(Error::OutOfMemory {
                device: self.0.facts.name.clone(),
                purpose: "a buffer".into(),
                requested_bytes: bytes as u64,
                free_bytes: free_bytes.min(self.0.device.maxBufferLength() as u64),
            });
        };
        self.0.residency.add(&buffer);
        let (address, host) = (buffer.gpuAddress(), buffer.contents().cast());
        let residency = Arc::clone(&self.0.residency);
        let buffer = Object(buffer);
        Ok(Buffer(Arc::new(Allocation { buffer, address, host, len: bytes, residency })))
    }

    fn queue(&self) -> Result<Queue> {
        let fail = |what: &str| self.lost("opening a queue", format!("Metal made no {what}"));
        let raw = self.0.device.newCommandQueue().ok_or_else(|| fail("queue"))?;
        let fence = self.0.device.newFence().ok_or_else(|| fail("fence"))?;
        if let Some(set) = &self.0.residency.set {
            raw.addResidencySet(set);
        }
        let (raw, fence) = (Object(raw), Object(fence));
        Ok(Queue { raw, fence, submits: 0, state: Arc::default() })
    }

    unsafe fn submit(&self, queue: &mut Queue, work: &Work) -> Result<Event> {
        autoreleasepool(|_| {
            let fail = |what: &str| self.lost("submitting", format!("Metal made no {what}"));
            // Not retained: the stream keeps all that the work touches.
            let buffer = queue.raw.commandBufferWithUnretainedReferences();
            let buffer = buffer.ok_or_else(|| fail("command buffer"))?;
            let encoder = buffer.computeCommandEncoderWithDispatchType(MTLDispatchType::Concurrent);
            let encoder = encoder.ok_or_else(|| fail("encoder"))?;
            if queue.submits > 0 {
                encoder.waitForFence(&queue.fence);
            }
            self.0.residency.apply(&encoder);
            let mut last = "";
            let encoded = work.steps(&mut |step| match step {
                Step::Launch(launch) => self.encode(&encoder, &launch, &mut last),
                Step::Barrier => {
                    encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers);
                    Ok(())
                }
            });
            encoder.updateFence(&queue.fence);
            encoder.endEncoding();
            encoded?;
            buffer.commit();
            queue.submits += 1;
            let (number, buffer) = (queue.submits, Object(buffer));
            lock(&queue.state).pending.push_back((number, buffer.clone()));
            Ok(Event { number, buffer, state: Arc::clone(&queue.state) })
        })
    }

    fn is_done(&self, event: &Event) -> bool {
        let status = event.buffer.status();
        status == MTLCommandBufferStatus::Completed || status == MTLCommandBufferStatus::Error
    }

    fn wait(&self, event: &Event) -> Result<()> {
        autoreleasepool(|_| {
            if !self.is_done(event) {
                event.buffer.waitUntilCompleted();
            }
            lock(&event.state).settle(event.number, |why| self.lost("running kernels", why))
        })
    }
}
