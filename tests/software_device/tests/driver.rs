//! The driver and the run-time compiler of the software device, called through cudarc.

use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DriverError, LaunchConfig, PushKernelArg, result, sys,
};
use cudarc::nvrtc;
use precast_software_device::SoftwareDevice;
use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard};

precast_software_device::use_software_device!();

const TEXT: &str = r#"
extern "C" __global__ void __launch_bounds__(128) add(const float* a, const float* b, float* c, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) c[i] = a[i] + b[i];
}
extern "C" __global__ void scale(float* x, float by, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) x[i] *= by;
}
extern "C" __global__ void past_the_end(float* x, int n) { if (threadIdx.x == 0) x[n] = 1.f; }
extern "C" __global__ void far_away(float* x) { x[1 << 26] = 1.f; }
extern "C" __global__ void half_way(float* x) {
  if (threadIdx.x < 7) __syncthreads();
  else
    __syncwarp();
  x[threadIdx.x] = 1.f;
}
extern "C" __global__ void large(float* x) {
  extern __shared__ __align__(128) unsigned char dyn_smem[];
  ((float*)dyn_smem)[threadIdx.x] = 1.f;
  x[threadIdx.x] = ((float*)dyn_smem)[threadIdx.x];
}
"#;

/// One test at a time: they count what lives on the one device. The stream is one that waits for
/// no other.
struct Set {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    device: SoftwareDevice,
    _alone: MutexGuard<'static, ()>,
}

fn set() -> Set {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(|p| p.into_inner());
    let context = CudaContext::new(0).unwrap();
    // SAFETY: every buffer here is used in one stream, or waited for.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    Set { context, stream, device: SoftwareDevice::open().unwrap(), _alone: alone }
}

impl Set {
    fn function(&self, name: &str) -> CudaFunction {
        let ptx = nvrtc::compile_ptx(TEXT).unwrap();
        self.context.load_module(ptx).unwrap().load_function(name).unwrap()
    }
}

fn config(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared }
}

#[test]
fn it_says_what_it_is() {
    let set = set();
    assert_eq!(set.context.name().unwrap(), "Precast software device (not a GPU)");
    assert_eq!(set.context.compute_capability().unwrap(), (9, 0));
    let (free, total) = result::mem_get_info().unwrap();
    assert!(free <= total && total == 4 << 30);
}

#[test]
fn vectors_are_added() {
    let set = set();
    let before = set.device.live_allocations();
    let n = 1000;
    let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let b: Vec<f32> = (0..n).map(|i| 0.5 * i as f32).collect();
    let da = set.stream.clone_htod(&a).unwrap();
    let db = set.stream.clone_htod(&b).unwrap();
    let mut dc = set.stream.alloc_zeros::<f32>(n).unwrap();
    let add = set.function("add");
    let count = n as i32;
    let mut launch = set.stream.launch_builder(&add);
    launch.arg(&da).arg(&db).arg(&mut dc).arg(&count);
    // SAFETY: the arguments are those of `add`.
    unsafe { launch.launch(config(8, 128, 0)) }.unwrap();
    let c = set.stream.clone_dtoh(&dc).unwrap();
    assert!((0..n).all(|i| c[i] == 1.5 * i as f32));
    assert_eq!(set.device.live_allocations(), before + 3);
    drop((da, db, dc));
    set.stream.synchronize().unwrap();
    assert_eq!(set.device.live_allocations(), before);
}

#[test]
fn launches_beyond_their_bounds_are_refused() {
    let set = set();
    let mut x = set.stream.alloc_zeros::<f32>(64).unwrap();
    let add = set.function("add");
    let large = set.function("large");
    let n = 64i32;
    // SAFETY: refused before anything runs.
    let launched = |f: &CudaFunction, c| unsafe {
        let mut launch = set.stream.launch_builder(f);
        launch.arg(&x).arg(&x).arg(&x).arg(&n);
        launch.launch(c).map(|_| ())
    };
    let code = |r: Result<(), DriverError>| r.unwrap_err().0;
    assert_eq!(
        code(launched(&add, config(1, 256, 0))),
        sys::CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
    );
    assert_eq!(code(launched(&add, config(1, 2000, 0))), sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(code(launched(&add, config(0, 32, 0))), sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(
        code(launched(&large, config(1, 64, 100 << 10))),
        sys::CUresult::CUDA_ERROR_INVALID_VALUE
    );
    let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    large.set_attribute(most, 100 << 10).unwrap();
    let mut launch = set.stream.launch_builder(&large);
    launch.arg(&mut x);
    // SAFETY: the argument is that of `large`.
    unsafe { launch.launch(config(1, 64, 100 << 10)) }.unwrap();
    assert_eq!(set.stream.clone_dtoh(&x).unwrap(), [1.0; 64]);
}

#[test]
fn text_that_does_not_compile_says_where() {
    let error =
        nvrtc::compile_ptx("\n\nextern \"C\" __global__ void f(float* x) { y = 1; }").unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains("kernel:3") && text.contains("not declared"), "{text}");
}

#[test]
fn memory_begins_as_nan_and_ends_where_it_ends() {
    let set = set();
    // SAFETY: any bits are a number.
    let x = unsafe { set.stream.alloc::<f32>(10) }.unwrap();
    assert!(set.stream.clone_dtoh(&x).unwrap().iter().all(|v| v.is_nan()));
    let mut too_many = [0f32; 11];
    let (at, _guard) = cudarc::driver::DevicePtr::device_ptr(&x, &set.stream);
    // SAFETY: the length is that of the target.
    let error = unsafe { result::memcpy_dtoh_sync(&mut too_many, at) }.unwrap_err();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    assert!(set.device.message().contains("44 bytes"), "{}", set.device.message());
    // More than there is.
    // SAFETY: nothing is allocated.
    let error = unsafe { result::malloc_sync(5 << 30) }.unwrap_err();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
}

#[test]
fn a_copy_from_page_locked_memory_reads_it_late() {
    let set = set();
    // SAFETY: initialised before use.
    let mut pinned = unsafe { set.context.alloc_pinned::<f32>(4) }.unwrap();
    pinned.as_mut_slice().unwrap().fill(1.0);
    let mut x = set.stream.alloc_zeros::<f32>(4).unwrap();
    set.stream.memcpy_htod(&pinned, &mut x).unwrap();
    let at = pinned.as_ptr().unwrap().cast_mut();
    // SAFETY: the memory is ours; that a copy reads it is the point.
    unsafe { at.write_volatile(2.0) };
    assert_eq!(set.stream.clone_dtoh(&x).unwrap(), [2.0, 1.0, 1.0, 1.0]);
    // Pageable memory is read at once.
    let mut pageable = vec![3f32; 4];
    set.stream.memcpy_htod(&pageable, &mut x).unwrap();
    pageable.fill(4.0);
    assert_eq!(set.stream.clone_dtoh(&x).unwrap(), [3.0; 4]);
}

#[test]
fn a_captured_step_runs_when_its_graph_does() {
    let set = set();
    let before = set.device.live_objects();
    let other = set.context.new_stream().unwrap();
    let mut x = set.stream.clone_htod(&[1f32; 100]).unwrap();
    let scale = set.function("scale");
    set.stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    let n = 100i32;
    for (stream, by) in [(&set.stream, 2f32), (&other, 3.0), (&set.stream, 0.5)] {
        // The other stream joins the capture by an event, and is joined by another.
        if by == 3.0 {
            other.wait(&set.stream.record_event(None).unwrap()).unwrap();
        } else if by == 0.5 {
            set.stream.wait(&other.record_event(None).unwrap()).unwrap();
        }
        let mut launch = stream.launch_builder(&scale);
        launch.arg(&mut x).arg(&by).arg(&n);
        // SAFETY: the arguments are those of `scale`.
        unsafe { launch.launch(config(2, 32, 0)) }.unwrap();
    }
    let flags = sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = set.stream.end_capture(flags).unwrap().unwrap();
    assert_eq!(set.stream.clone_dtoh(&x).unwrap(), [1.0; 100], "nothing has run");
    for _ in 0..3 {
        graph.launch().unwrap();
    }
    assert_eq!(set.stream.clone_dtoh(&x).unwrap(), [27.0; 100]);
    drop((graph, scale, other));
    assert_eq!(set.device.live_objects(), before);
}

/// Work behind a graph waits for all of it, whatever graphs of other streams run in between.
#[test]
fn what_follows_a_graph_waits_for_it_beside_other_graphs() {
    let set = set();
    let scale = set.function("scale");
    let (add, n) = (set.function("add"), 10i32);
    let streams: Vec<_> = (0..3).map(|_| set.context.new_stream().unwrap()).collect();
    let mut runs = vec![];
    for stream in &streams {
        let mut x = stream.clone_htod(&[1f32; 10]).unwrap();
        let one = stream.clone_htod(&[1f32; 10]).unwrap();
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
        for by in [2f32, 2.0, 2.0, 0.5, 0.5] {
            let mut launch = stream.launch_builder(&scale);
            launch.arg(&mut x).arg(&by).arg(&n);
            // SAFETY: the arguments are those of `scale`.
            unsafe { launch.launch(config(1, 32, 0)) }.unwrap();
        }
        let flags =
            sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).unwrap().unwrap();
        runs.push((x, one, graph));
    }
    for _ in 0..20 {
        for (stream, (x, one, graph)) in streams.iter().zip(&runs) {
            graph.launch().unwrap();
            let mut launch = stream.launch_builder(&add);
            launch.arg(x).arg(one).arg(x).arg(&n);
            // SAFETY: the arguments are those of `add`, which reads an element before it writes it.
            unsafe { launch.launch(config(1, 32, 0)) }.unwrap();
        }
    }
    // Doubled and increased by one, twenty times.
    let want = (0..20).fold(1f32, |x, _| 2.0 * x + 1.0);
    for (stream, (x, ..)) in streams.iter().zip(&runs) {
        assert_eq!(stream.clone_dtoh(x).unwrap(), [want; 10]);
    }
}

#[test]
fn a_capture_that_is_not_joined_is_refused() {
    let set = set();
    let other = set.context.new_stream().unwrap();
    let mut x = set.stream.clone_htod(&[1f32; 100]).unwrap();
    let scale = set.function("scale");
    let (n, by) = (100i32, 2f32);
    set.stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    other.wait(&set.stream.record_event(None).unwrap()).unwrap();
    let mut launch = other.launch_builder(&scale);
    launch.arg(&mut x).arg(&by).arg(&n);
    // SAFETY: the arguments are those of `scale`.
    unsafe { launch.launch(config(2, 32, 0)) }.unwrap();
    // What is captured cannot be waited for.
    let code = set.stream.synchronize().unwrap_err().0;
    assert_eq!(code, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let flags = sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let code = set.stream.end_capture(flags).err().expect("unjoined").0;
    assert_eq!(code, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    assert_eq!(set.stream.clone_dtoh(&x).unwrap(), [1.0; 100]);
}

#[test]
fn an_event_is_passed_after_a_while() {
    let set = set();
    let mut x = set.stream.clone_htod(&[1f32; 100]).unwrap();
    let scale = set.function("scale");
    let (n, by) = (100i32, 2f32);
    let timing = Some(sys::CUevent_flags_enum::CU_EVENT_DEFAULT);
    let start = set.stream.record_event(timing).unwrap();
    let mut launch = set.stream.launch_builder(&scale);
    launch.arg(&mut x).arg(&by).arg(&n);
    // SAFETY: the arguments are those of `scale`.
    unsafe { launch.launch(config(2, 32, 0)) }.unwrap();
    let end = set.stream.record_event(timing).unwrap();
    let mut asked = 0;
    while !end.is_complete() {
        asked += 1;
        assert!(asked < 100);
    }
    assert!(asked > 0);
    assert!(start.elapsed_ms(&end).unwrap() > 0.0);
    // cudarc's own have no time.
    let other = set.stream.record_event(None).unwrap();
    set.stream.synchronize().unwrap();
    assert!(start.elapsed_ms(&other).is_err());
}

/// What kernels do wrong ends the device, so each runs in a process of its own.
#[test]
fn what_kernels_do_wrong_is_an_error() {
    let variable = "PRECAST_SOFTWARE_DEVICE_WRONG";
    let cases = [
        (
            "past_the_end",
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "byte 0 after an allocation of 40 bytes was written to",
        ),
        ("far_away", "CUDA_ERROR_ILLEGAL_ADDRESS", "illegal address"),
        ("half_way", "CUDA_ERROR_LAUNCH_FAILED", "deadlock in block (0,0,0)"),
    ];
    if let Ok(name) = std::env::var(variable) {
        let set = set();
        let case = cases.iter().find(|c| c.0 == name).expect("a case");
        // SAFETY: any bits are a number.
        let mut x = unsafe { set.stream.alloc::<f32>(10) }.unwrap();
        let function = set.function(&name);
        let n = 10i32;
        let mut launch = set.stream.launch_builder(&function);
        launch.arg(&mut x);
        if name == "past_the_end" {
            launch.arg(&n);
        }
        // SAFETY: that the software device notices is the point.
        unsafe { launch.launch(config(1, 64, 0)) }.unwrap();
        let error = set.stream.synchronize().unwrap_err();
        assert_eq!(format!("{:?}", error.0), case.1);
        let message = set.device.message();
        assert!(message.contains(case.2) && message.contains(&name), "{message}");
        // Nothing works afterwards.
        assert_eq!(set.stream.synchronize().unwrap_err(), error);
        println!("seen {name}");
        return;
    }
    for (name, ..) in cases {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "what_kernels_do_wrong_is_an_error", "--nocapture"])
            .env(variable, name)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains(&format!("seen {name}")),
            "{text}{output:?}"
        );
    }
}

#[test]
fn host_code_cannot_reach_device_memory() {
    let variable = "PRECAST_SOFTWARE_DEVICE_REACH";
    if std::env::var_os(variable).is_some() {
        let set = set();
        let x = set.stream.clone_htod(&[1f32; 4]).unwrap();
        let (at, _guard) = cudarc::driver::DevicePtr::device_ptr(&x, &set.stream);
        // SAFETY: none; that this ends the process is the point.
        println!("read {}", unsafe { std::ptr::read_volatile(at as *const f32) });
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "host_code_cannot_reach_device_memory", "--nocapture"])
        .env(variable, "1")
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(!String::from_utf8_lossy(&output.stdout).contains("read"));
}

#[test]
fn a_call_without_a_context_is_refused() {
    let _set = set();
    std::thread::spawn(|| {
        // SAFETY: nothing is allocated.
        let error = unsafe { result::malloc_sync(64) }.unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_INVALID_CONTEXT);
    })
    .join()
    .unwrap();
    let name = CString::new("absent").unwrap();
    // SAFETY: a handle that is none is refused.
    let found = unsafe { result::module::get_function(0x30 as sys::CUmodule, name) };
    assert_eq!(found.unwrap_err().0, sys::CUresult::CUDA_ERROR_INVALID_HANDLE);
}
