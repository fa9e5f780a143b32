//! Plans of cuDNN's graph interface: what its heuristics propose for a convolution.
//!
//! ```text
//! tensors, operations ─► operation graph ─► heuristics ─► engine configurations ─► plans
//! ```
//!
//! A plan is an engine with its parameters, ready to run. Which of the proposed ones is the fastest
//! shows when they run ([`State::tune`](super::state::State::tune)).
//!
//! All of cuDNN's objects are backend descriptors here: an object of a kind, attributes that are set
//! one by one, and `finalize`, which checks them.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use cudarc::cudnn::result::CudnnError;
use cudarc::cudnn::sys::{
    self, cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendDescriptorType_t as Kind, cudnnBackendHeurMode_t as Mode, cudnnDataType_t,
    cudnnStatus_t,
};
use cudarc::driver::sys::CUdeviceptr;

use super::failed;
use crate::driver::DeviceError;
use crate::graph::{GraphTensor, Node, Number, OperationGraph, Role};
use crate::op::{Convolution, Half, Tensor4};

/// The most plans that are tried for a convolution. Heuristics name the one that they think the
/// fastest first, and up to 40 in all.
const MOST_PLANS: usize = 6;

/// The most bytes of workspace that a plan may want.
const MOST_WORKSPACE: usize = 64 << 20;

const CALL: &str = "planning a convolution";

/// What an attribute may hold.
///
/// # Safety
/// The type has the layout that cuDNN reads for attributes of the type `TYPE`.
unsafe trait Attribute: Copy {
    const TYPE: Type;
}

/// A descriptor's pointer as the value of an attribute.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Reference(sys::cudnnBackendDescriptor_t);

/// A handle as the value of an attribute.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct HandleValue(sys::cudnnHandle_t);

/// A device address as the value of an attribute, which is a pointer to cuDNN.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Address(CUdeviceptr);

// SAFETY: cudnn_backend.h names this type for the attribute type.
unsafe impl Attribute for i64 {
    const TYPE: Type = Type::CUDNN_TYPE_INT64;
}
// SAFETY: cudnn_backend.h names this type for the attribute type.
unsafe impl Attribute for f32 {
    const TYPE: Type = Type::CUDNN_TYPE_FLOAT;
}
// SAFETY: cudnn_backend.h names C's bool, which like Rust's is one byte of 0 or 1.
unsafe impl Attribute for bool {
    const TYPE: Type = Type::CUDNN_TYPE_BOOLEAN;
}
// SAFETY: cudnn_backend.h names this type for the attribute type.
unsafe impl Attribute for u8 {
    const TYPE: Type = Type::CUDNN_TYPE_CHAR;
}
// SAFETY: cudnn_backend.h names this type for the attribute type.
unsafe impl Attribute for cudnnDataType_t {
    const TYPE: Type = Type::CUDNN_TYPE_DATA_TYPE;
}
// SAFETY: cudnn_backend.h names this type for the attribute type.
unsafe impl Attribute for sys::cudnnConvolutionMode_t {
    const TYPE: Type = Type::CUDNN_TYPE_CONVOLUTION_MODE;
}
// SAFETY: cudnn_backend.h names this type for the attribute type.
unsafe impl Attribute for sys::cudnnPointwiseMode_t {
    const TYPE: Type = Type::CUDNN_TYPE_POINTWISE_MODE;
}
// SAFETY: cudnn_backend.h names this type for the attribute type.
unsafe impl Attribute for Mode {
    const TYPE: Type = Type::CUDNN_TYPE_HEUR_MODE;
}
// SAFETY: cudnn_backend.h names the pointer in the wrapper, which is transparent.
unsafe impl Attribute for Reference {
    const TYPE: Type = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
}
// SAFETY: cudnn_backend.h names the handle in the wrapper, which is transparent.
unsafe impl Attribute for HandleValue {
    const TYPE: Type = Type::CUDNN_TYPE_HANDLE;
}
// SAFETY: cudnn_backend.h names a pointer, and device addresses have the size of one.
unsafe impl Attribute for Address {
    const TYPE: Type = Type::CUDNN_TYPE_VOID_PTR;
}

/// Returns a failed status as an error, with what cuDNN says of it.
fn checked(status: cudnnStatus_t) -> Result<(), DeviceError> {
    status.result().map_err(|CudnnError(status)| {
        let mut text = [0 as c_char; 256];
        // SAFETY: the array has room for so many bytes, and begins with a zero if none is written.
        let text = unsafe {
            sys::cudnnGetLastErrorString(text.as_mut_ptr(), text.len());
            text[text.len() - 1] = 0;
            CStr::from_ptr(text.as_ptr()).to_string_lossy()
        };
        failed(CALL, &format!("{status:?} {text}"))
    })
}

/// A backend descriptor that destroys itself.
struct Descriptor(sys::cudnnBackendDescriptor_t);

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the descriptor was created with this value and is destroyed once. Finalised
        // descriptors that were made of it hold what they need of it.
        let _ = unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}

impl Descriptor {
    fn new(kind: Kind) -> Result<Self, DeviceError> {
        let mut made = ptr::null_mut();
        // SAFETY: cuDNN writes the descriptor's pointer.
        checked(unsafe { sys::cudnnBackendCreateDescriptor(kind, &mut made) })?;
        Ok(Self(made))
    }

    /// Sets an attribute. Returns the descriptor, so that calls can follow each other.
    fn set<T: Attribute>(&self, name: Name, values: &[T]) -> Result<&Self, DeviceError> {
        // SAFETY: the values are so many of what the attribute's type says, and cuDNN copies them.
        checked(unsafe {
            sys::cudnnBackendSetAttribute(
                self.0,
                name,
                T::TYPE,
                values.len() as i64,
                values.as_ptr().cast(),
            )
        })?;
        Ok(self)
    }

    fn set_descriptor(&self, name: Name, value: &Self) -> Result<&Self, DeviceError> {
        self.set(name, &[Reference(value.0)])
    }

    fn finalize(self) -> Result<Self, DeviceError> {
        // SAFETY: the descriptor is valid.
        checked(unsafe { sys::cudnnBackendFinalize(self.0) })?;
        Ok(self)
    }

    /// Reads as many values of an attribute as there are, up to the slice's length. Returns how many
    /// were read.
    ///
    /// # Safety
    /// `T` has the layout of the attribute type `of`, and every value that cuDNN may write is one.
    unsafe fn get<T>(&self, name: Name, of: Type, to: &mut [T]) -> Result<usize, DeviceError> {
        let mut count = 0;
        // SAFETY: cuDNN writes at most so many values of the type.
        checked(unsafe {
            sys::cudnnBackendGetAttribute(
                self.0,
                name,
                of,
                to.len() as i64,
                &mut count,
                to.as_mut_ptr().cast::<c_void>(),
            )
        })?;
        Ok(usize::try_from(count).unwrap_or(0).min(to.len()))
    }

    fn integer(&self, name: Name) -> Result<i64, DeviceError> {
        let mut value = [0i64];
        // SAFETY: the attribute is an integer of 64 bits, of which any value is one.
        unsafe { self.get(name, Type::CUDNN_TYPE_INT64, &mut value) }?;
        Ok(value[0])
    }
}

/// For which GPU plans are made.
pub(super) enum Target {
    /// The one that a handle was opened on.
    Handle(sys::cudnnHandle_t),
    /// One that is not here, by its properties. Its plans cannot run.
    Absent(Properties),
}

/// A GPU's properties as cuDNN keeps them.
pub(super) struct Properties(Descriptor);

impl Properties {
    /// Reads them from cuDNN's own JSON.
    pub(super) fn parse(json: &str) -> Result<Self, DeviceError> {
        let made = Descriptor::new(Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)?;
        made.set(
            Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
            json.as_bytes(),
        )?;
        Ok(Self(made.finalize()?))
    }
}

/// An engine with its parameters, ready to run one convolution.
pub(super) struct Plan {
    descriptor: Descriptor,
    /// cuDNN's number of the engine.
    pub(super) engine: i64,
    /// The bytes of workspace that it wants.
    pub(super) workspace: usize,
}

impl Plan {
    /// Returns what cuDNN's heuristics propose for a convolution, the presumably fastest first.
    ///
    /// Engines that are compiled when they are first used are left out: each takes a good part of a
    /// second, and a ResNet-50 has some twenty shapes at each of seven batch sizes.
    pub(super) fn propose(target: &Target, shape: &Convolution) -> Result<Vec<Self>, DeviceError> {
        let graph = operation_graph(target, &OperationGraph::of(shape))?;
        let mut plans = Vec::new();
        // The second mode's engines work for every shape, but few are fast.
        for mode in [Mode::CUDNN_HEUR_MODE_A, Mode::CUDNN_HEUR_MODE_FALLBACK] {
            for configuration in configurations(target, &graph, mode)? {
                if plans.len() == MOST_PLANS {
                    break;
                }
                // An engine may turn out not to take the shape after all.
                if let Ok(Some(plan)) = Self::of(target, configuration) {
                    plans.push(plan);
                }
            }
            if !plans.is_empty() {
                break;
            }
        }
        Ok(plans)
    }

    /// Makes a plan of a configuration; `None` if it is not wanted.
    fn of(target: &Target, configuration: Descriptor) -> Result<Option<Self>, DeviceError> {
        let engine = Descriptor::new(Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?;
        // SAFETY: cuDNN fills descriptors of the right kind that exist, so that the value stays.
        unsafe {
            configuration.get(
                Name::CUDNN_ATTR_ENGINECFG_ENGINE,
                Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
                &mut [Reference(engine.0)],
            )
        }?;
        // As integers: a newer cuDNN has notes that the bindings do not know.
        let mut notes = [0i32; 16];
        // SAFETY: C's enumerations have the size of an int, of which any value is one.
        let count = unsafe {
            engine.get(
                Name::CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE,
                Type::CUDNN_TYPE_BEHAVIOR_NOTE,
                &mut notes,
            )
        }?;
        let compiled_later =
            sys::cudnnBackendBehaviorNote_t::CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION as i32;
        if notes[..count].contains(&compiled_later) {
            return Ok(None);
        }
        let plan = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        plan.set_descriptor(
            Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
            &configuration,
        )?;
        match target {
            Target::Handle(handle) => plan.set(
                Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE,
                &[HandleValue(*handle)],
            )?,
            Target::Absent(Properties(properties)) => {
                plan.set_descriptor(Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, properties)?
            }
        };
        let descriptor = plan.finalize()?;
        let workspace = descriptor.integer(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
        let workspace = usize::try_from(workspace).unwrap_or(usize::MAX);
        if workspace > MOST_WORKSPACE {
            return Ok(None);
        }
        Ok(Some(Self {
            engine: engine.integer(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX)?,
            descriptor,
            workspace,
        }))
    }

    /// Queues the plan on the handle's stream.
    ///
    /// # Safety
    /// - The handle is the one that the plan was made for, and is used by this thread alone.
    /// - Each address is of memory that holds what [`OperationGraph::of`] says of the tensor, until
    ///   the stream has come past the plan; z's is there if the convolution has a residual.
    /// - The workspace has at least the plan's bytes.
    pub(super) unsafe fn execute(
        &self,
        handle: sys::cudnnHandle_t,
        tensors: &Addresses,
        workspace: CUdeviceptr,
    ) -> Result<(), DeviceError> {
        let (ids, addresses): (Vec<i64>, Vec<Address>) = tensors.named().unzip();
        let pack = Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
        pack.set(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &ids)?
            .set(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &addresses)?
            .set(
                Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE,
                &[Address(workspace)],
            )?;
        let pack = pack.finalize()?;
        // SAFETY: the caller vouches for handle, addresses and workspace; plan and pack are finalised.
        checked(unsafe { sys::cudnnBackendExecute(handle, self.descriptor.0, pack.0) })
    }
}

/// Where a convolution's tensors lie.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub(super) x: CUdeviceptr,
    pub(super) weights: CUdeviceptr,
    pub(super) bias: CUdeviceptr,
    pub(super) z: Option<CUdeviceptr>,
    pub(super) y: CUdeviceptr,
}

impl Addresses {
    /// Returns the tensors in memory with their numbers, in the order of [`OperationGraph::of`].
    fn named(&self) -> impl Iterator<Item = (i64, Address)> {
        let all = [self.x, self.weights, self.bias, self.y];
        let all = all.into_iter().chain(self.z);
        all.enumerate()
            .map(|(tensor, address)| (OperationGraph::id(tensor), Address(address)))
    }
}

/// Returns the engines, with their parameters, that heuristics propose.
fn configurations(
    target: &Target,
    graph: &Descriptor,
    mode: Mode,
) -> Result<Vec<Descriptor>, DeviceError> {
    let heuristics = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
    heuristics
        .set_descriptor(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)?
        .set(Name::CUDNN_ATTR_ENGINEHEUR_MODE, &[mode])?;
    if let Target::Absent(Properties(properties)) = target {
        heuristics.set_descriptor(Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, properties)?;
    }
    let heuristics = heuristics.finalize()?;
    // More than are tried, because some are not wanted.
    let mut made: Vec<Descriptor> = (0..4 * MOST_PLANS)
        .map(|_| Descriptor::new(Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR))
        .collect::<Result<_, _>>()?;
    let mut references: Vec<Reference> = made.iter().map(|one| Reference(one.0)).collect();
    // SAFETY: cuDNN fills descriptors of the right kind that exist, so that the values stay.
    let count = unsafe {
        heuristics.get(
            Name::CUDNN_ATTR_ENGINEHEUR_RESULTS,
            Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
            &mut references,
        )
    }?;
    made.truncate(count);
    Ok(made)
}

/// Builds a graph out of its description.
fn operation_graph(target: &Target, graph: &OperationGraph) -> Result<Descriptor, DeviceError> {
    let tensors: Vec<Descriptor> = graph
        .tensors
        .iter()
        .enumerate()
        .map(|(i, described)| tensor(OperationGraph::id(i), described))
        .collect::<Result<_, _>>()?;
    let operations: Vec<Descriptor> = graph
        .nodes
        .iter()
        .map(|node| operation(node, &tensors))
        .collect::<Result<_, _>>()?;
    let references: Vec<Reference> = operations.iter().map(|one| Reference(one.0)).collect();
    let made = Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
    made.set(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &references)?;
    if let Target::Handle(handle) = target {
        made.set(
            Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE,
            &[HandleValue(*handle)],
        )?;
    }
    made.finalize()
}

fn tensor(id: i64, described: &GraphTensor) -> Result<Descriptor, DeviceError> {
    let number = match described.number {
        Number::Half(Half::F16) => cudnnDataType_t::CUDNN_DATA_HALF,
        Number::Half(Half::BF16) => cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        Number::F32 => cudnnDataType_t::CUDNN_DATA_FLOAT,
    };
    let Tensor4 { dims, strides } = described.shape;
    let is_virtual = described.role == Role::Between;
    let made = Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
    made.set(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, &[number])?
        .set(
            Name::CUDNN_ATTR_TENSOR_DIMENSIONS,
            &dims.map(|size| size as i64),
        )?
        .set(
            Name::CUDNN_ATTR_TENSOR_STRIDES,
            &strides.map(|stride| stride as i64),
        )?
        .set(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[id])?
        .set(
            Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT,
            &[OperationGraph::ALIGNMENT as i64],
        )?
        .set(Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL, &[is_virtual])?;
    made.finalize()
}

fn operation(node: &Node, tensors: &[Descriptor]) -> Result<Descriptor, DeviceError> {
    match *node {
        Node::Convolution {
            x,
            weights,
            y,
            padding,
            stride,
        } => {
            let described = Descriptor::new(Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?;
            let (padding, stride) = ([padding as i64; 2], [stride as i64; 2]);
            described
                .set(
                    Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE,
                    &[cudnnDataType_t::CUDNN_DATA_FLOAT],
                )?
                .set(
                    Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE,
                    &[sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION],
                )?
                .set(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &[2i64])?
                .set(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &padding)?
                .set(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &padding)?
                .set(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, &[1i64; 2])?
                .set(Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, &stride)?;
            let described = described.finalize()?;
            let made =
                Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)?;
            made.set_descriptor(
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                &tensors[x],
            )?
            .set_descriptor(
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                &tensors[weights],
            )?
            .set_descriptor(
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                &tensors[y],
            )?
            .set_descriptor(
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                &described,
            )?
            .set(
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                &[1f32],
            )?
            .set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, &[0f32])?;
            made.finalize()
        }
        Node::Add { x, b, y } => pointwise(
            sys::cudnnPointwiseMode_t::CUDNN_POINTWISE_ADD,
            &tensors[x],
            Some(&tensors[b]),
            &tensors[y],
        ),
        Node::Relu { x, y } => pointwise(
            sys::cudnnPointwiseMode_t::CUDNN_POINTWISE_RELU_FWD,
            &tensors[x],
            None,
            &tensors[y],
        ),
    }
}

/// An operation on each number by itself, in float32.
fn pointwise(
    mode: sys::cudnnPointwiseMode_t,
    x: &Descriptor,
    b: Option<&Descriptor>,
    y: &Descriptor,
) -> Result<Descriptor, DeviceError> {
    let described = Descriptor::new(Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?;
    described
        .set(Name::CUDNN_ATTR_POINTWISE_MODE, &[mode])?
        .set(
            Name::CUDNN_ATTR_POINTWISE_MATH_PREC,
            &[cudnnDataType_t::CUDNN_DATA_FLOAT],
        )?;
    let described = described.finalize()?;
    let made = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)?;
    made.set_descriptor(
        Name::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR,
        &described,
    )?
    .set_descriptor(Name::CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x)?
    .set_descriptor(Name::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y)?;
    if let Some(b) = b {
        made.set_descriptor(Name::CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b)?;
    }
    made.finalize()
}
