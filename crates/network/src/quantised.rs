//! A network in 8-bit integers before it is packed: made of a float checkpoint, or read from a file
//! that `imgclass weights quantize` has written. Both pack to the same network, bit for bit.
//!
//! The tensors of such a file are, for a convolution named `layer1.0.conv1`:
//!
//! | tensor | type and shape | meaning |
//! |---|---|---|
//! | `layer1.0.conv1.weight` | I8 `[out, in, kernel, kernel]` | the integers |
//! | `layer1.0.conv1.scale` | F32 `[out]` | what the sums of integers are multiplied by |
//! | `layer1.0.conv1.bias` | F32 `[out]` | what is added, in units of the output's integers |
//! | `layer1.0.conv1.output_scale` | F32 `[1]` | what an output's integer stands for |
//!
//! A downsample convolution has no `output_scale`, as its output is bfloat16. A layer that is kept
//! wide has weights of type BF16 and no `scale`. The stem, `conv1`, also has `conv1.border`, U8
//! `[3]`. The last layer, `fc`, has `weight`, `scale` and `bias`.

use std::collections::BTreeMap;

use imgclass_checkpoint::{
    Architecture, CheckpointInfo, QuantisedFile, QuantisedTensor, QuantisedTensors, StoredNumbers,
    TensorSource,
};
use imgclass_kernels::{Int8Stem, PackedLinear};

use crate::backend::{ConvRole, STEM};
use crate::cpu::{Conv, CpuBackend, Stem};
use crate::error::NetworkError;
use crate::input::Normalisation;
use crate::parallel::in_parallel;
use crate::plan::{ConvPlan, Plan};
use crate::quantise::{
    self, QuantisedConv, QuantisedLinear, QuantisedStem, QuantisedWeights, Scales, StemWeights,
};
use crate::resnet::{FloatLayers, Layers, ResNet};

/// The layers of a network in 8-bit integers.
#[derive(Debug)]
pub(crate) struct QuantisedNetwork {
    architecture: Architecture,
    stem: QuantisedStem,
    convs: BTreeMap<String, QuantisedConv>,
    linear: QuantisedLinear,
}

/// A tensor with one number for each output channel, and the like: `NAME.PART`.
fn part(name: &str, part: &str) -> String {
    format!("{name}.{part}")
}

impl QuantisedNetwork {
    /// Quantises a float network on up to `threads` threads.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or a layer's range is not known.
    pub(crate) fn of(
        tensors: &dyn TensorSource,
        info: &CheckpointInfo,
        scales: &Scales,
        threads: usize,
    ) -> Result<Self, NetworkError> {
        let layers = FloatLayers {
            tensors,
            architecture: &info.architecture,
            classes: info.classes,
        };
        let normalisation = Normalisation::of(&info.preprocessing);
        let stem = layers.folded_stem()?;
        let is_wide = scales.wide.contains(STEM);
        let stem = quantise::stem(&stem, &normalisation, scales.of(STEM)?, is_wide);
        let plan = Plan::of(&info.architecture);
        let plans: Vec<&ConvPlan> = plan.convs().collect();
        let convs = in_parallel(threads, plans.len(), |index| {
            let plan = plans[index];
            quantise::conv(&plan.place, &layers.folded_conv(plan)?, scales)
        })?;
        let last = plans.last().map_or(STEM, |plan| &plan.place.name);
        let linear = quantise::linear(&layers.linear_weights()?, scales.of(last)?);
        let names = plans.iter().map(|plan| plan.place.name.clone());
        Ok(Self {
            architecture: info.architecture,
            stem,
            convs: names.zip(convs).collect(),
            linear,
        })
    }

    /// Reads the layers from a file, each tensor checked, on up to `threads` threads.
    ///
    /// # Errors
    /// The file is of another recipe; a tensor is missing, left over, or has another shape, type or
    /// numbers than it can have.
    pub(crate) fn read(
        file: &QuantisedFile,
        info: &CheckpointInfo,
        threads: usize,
    ) -> Result<Self, NetworkError> {
        let (found, known) = (file.description().recipe, crate::calibration::RECIPE);
        if found != known {
            return Err(file
                .refused(format!(
                    "it was made by recipe {found}, and this version of imgclass has recipe {known}: \
                     quantise the float checkpoint again with `imgclass weights quantize`"
                ))
                .into());
        }
        let tensors = file.tensors()?;
        let stem = read_stem(&tensors)?;
        let plan = Plan::of(&info.architecture);
        let plans: Vec<&ConvPlan> = plan.convs().collect();
        let convs = in_parallel(threads, plans.len(), |index| {
            read_conv(&tensors, plans[index])
        })?;
        let (classes, features) = (info.classes, info.architecture.features());
        let linear = QuantisedLinear {
            weight: tensors.integers("fc.weight", &[classes, features])?,
            scale: tensors.scales("fc.scale", &[classes])?,
            bias: tensors.floats("fc.bias", &[classes])?,
        };
        tensors.check_all_taken()?;
        let names = plans.iter().map(|plan| plan.place.name.clone());
        Ok(Self {
            architecture: info.architecture,
            stem,
            convs: names.zip(convs).collect(),
            linear,
        })
    }

    /// Returns the tensors of a file that [`Self::read`] reads.
    pub(crate) fn tensors(&self) -> Vec<QuantisedTensor> {
        let mut tensors = Vec::new();
        let mut add = |name: String, dims: &[usize], numbers| {
            let dims = dims.to_vec();
            tensors.push(QuantisedTensor {
                name,
                dims,
                numbers,
            });
        };
        let floats = |floats: &[f32]| StoredNumbers::Floats(floats.to_vec());
        let (weight, bias) = match &self.stem.weights {
            StemWeights::Integers(stem) => {
                add(part(STEM, "scale"), &[64], floats(&stem.scale));
                let border = StoredNumbers::Bytes(stem.border.to_vec());
                add(part(STEM, "border"), &[3], border);
                (StoredNumbers::Integers(stem.weight.clone()), &stem.bias)
            }
            StemWeights::Wide { weight, bias } => (StoredNumbers::Bf16(weight.clone()), bias),
        };
        add(part(STEM, "weight"), &STEM_DIMS, weight);
        add(part(STEM, "bias"), &[64], floats(bias));
        let scale = floats(&[self.stem.output_scale]);
        add(part(STEM, "output_scale"), &[1], scale);
        for plan in Plan::of(&self.architecture).convs() {
            let name = &plan.place.name;
            let Some(conv) = self.convs.get(name) else {
                continue;
            };
            let outputs = [plan.shape.out_channels];
            let weight = match &conv.weights {
                QuantisedWeights::Integers { weight, scale } => {
                    add(part(name, "scale"), &outputs, floats(scale));
                    StoredNumbers::Integers(weight.clone())
                }
                QuantisedWeights::Wide(weight) => StoredNumbers::Bf16(weight.clone()),
            };
            add(part(name, "weight"), &weight_dims(plan), weight);
            add(part(name, "bias"), &outputs, floats(&conv.bias));
            if has_output_scale(plan) {
                let scale = floats(&[conv.output_scale]);
                add(part(name, "output_scale"), &[1], scale);
            }
        }
        let QuantisedLinear {
            weight,
            scale,
            bias,
        } = &self.linear;
        let dims = [bias.len(), weight.len() / bias.len().max(1)];
        let weight = StoredNumbers::Integers(weight.clone());
        add("fc.weight".to_owned(), &dims, weight);
        add("fc.scale".to_owned(), &dims[..1], floats(scale));
        add("fc.bias".to_owned(), &dims[..1], floats(bias));
        tensors
    }

    /// Packs the network. Returns it with its last layer's weights, `[classes, features]`.
    ///
    /// # Errors
    /// A layer is missing; never for a network that was read or made.
    pub(crate) fn pack(
        &self,
        backend: CpuBackend,
    ) -> Result<(ResNet<CpuBackend>, Vec<f32>), NetworkError> {
        let net = ResNet::assemble(&self.architecture, self, backend)?;
        Ok((net, self.linear.numbers()))
    }

    /// Returns the names of the layers that are kept wide.
    pub(crate) fn wide(&self) -> Vec<String> {
        let is_wide = |conv: &QuantisedConv| matches!(conv.weights, QuantisedWeights::Wide(_));
        let plan = Plan::of(&self.architecture);
        let names = plan.convs().map(|plan| &plan.place.name);
        let names = names.filter(|name| self.convs.get(*name).is_some_and(is_wide));
        let stem = self.stem_is_wide().then(|| STEM.to_owned());
        stem.into_iter().chain(names.cloned()).collect()
    }

    /// Returns what an integer of a layer's output stands for, and whether the output is bfloat16
    /// because the layer is kept wide.
    fn output_of(&self, name: &str) -> Result<(f32, bool), NetworkError> {
        if name == STEM {
            return Ok((self.stem.output_scale, self.stem_is_wide()));
        }
        let conv = self.conv(name)?;
        let is_wide = matches!(conv.weights, QuantisedWeights::Wide(_));
        Ok((conv.output_scale, is_wide))
    }

    fn stem_is_wide(&self) -> bool {
        matches!(self.stem.weights, StemWeights::Wide { .. })
    }

    fn conv(&self, name: &str) -> Result<&QuantisedConv, NetworkError> {
        let conv = self.convs.get(name);
        conv.ok_or_else(|| NetworkError::Quantisation(format!("there is no layer `{name}`")))
    }
}

impl Layers<CpuBackend> for QuantisedNetwork {
    fn stem(&self, backend: &CpuBackend) -> Result<Stem, NetworkError> {
        Ok(backend.pack_stem(&self.stem))
    }

    fn conv(&self, backend: &CpuBackend, plan: &ConvPlan) -> Result<Conv, NetworkError> {
        let conv = self.conv(&plan.place.name)?;
        backend.pack_conv(&plan.place, plan.shape, conv, &|name| self.output_of(name))
    }

    fn linear(&self, backend: &CpuBackend) -> Result<PackedLinear, NetworkError> {
        Ok(backend.pack_linear(&self.linear))
    }
}

fn weight_dims(plan: &ConvPlan) -> [usize; 4] {
    let shape = plan.shape;
    [
        shape.out_channels,
        shape.in_channels,
        shape.kernel,
        shape.kernel,
    ]
}

fn has_output_scale(plan: &ConvPlan) -> bool {
    !matches!(plan.place.role, ConvRole::Downsample(_))
}

fn output_scale(tensors: &QuantisedTensors<'_>, name: &str) -> Result<f32, NetworkError> {
    let scale = tensors.scales(&part(name, "output_scale"), &[1])?;
    Ok(scale.first().copied().unwrap_or(1.0))
}

/// The dimensions of the stem's weights.
const STEM_DIMS: [usize; 4] = [64, 3, 7, 7];

fn read_stem(tensors: &QuantisedTensors<'_>) -> Result<QuantisedStem, NetworkError> {
    let bias = tensors.floats(&part(STEM, "bias"), &[64])?;
    let weights = match tensors.weights(&part(STEM, "weight"), &STEM_DIMS)? {
        StoredNumbers::Integers(weight) => StemWeights::Integers(Int8Stem {
            weight,
            scale: tensors.scales(&part(STEM, "scale"), &[64])?,
            bias,
            border: {
                let border = tensors.bytes(&part(STEM, "border"), &[3])?;
                border.try_into().unwrap_or_default()
            },
        }),
        StoredNumbers::Bf16(weight) | StoredNumbers::Floats(weight) => {
            StemWeights::Wide { weight, bias }
        }
        StoredNumbers::Bytes(_) => StemWeights::Wide {
            weight: Vec::new(),
            bias,
        },
    };
    Ok(QuantisedStem {
        weights,
        output_scale: output_scale(tensors, STEM)?,
    })
}

fn read_conv(
    tensors: &QuantisedTensors<'_>,
    plan: &ConvPlan,
) -> Result<QuantisedConv, NetworkError> {
    let name = &plan.place.name;
    let outputs = [plan.shape.out_channels];
    let weights = match tensors.weights(&part(name, "weight"), &weight_dims(plan))? {
        StoredNumbers::Integers(weight) => QuantisedWeights::Integers {
            weight,
            scale: tensors.scales(&part(name, "scale"), &outputs)?,
        },
        StoredNumbers::Bf16(weight) | StoredNumbers::Floats(weight) => {
            QuantisedWeights::Wide(weight)
        }
        StoredNumbers::Bytes(_) => QuantisedWeights::Wide(Vec::new()),
    };
    Ok(QuantisedConv {
        weights,
        bias: tensors.floats(&part(name, "bias"), &outputs)?,
        output_scale: if has_output_scale(plan) {
            output_scale(tensors, name)?
        } else {
            1.0
        },
    })
}
