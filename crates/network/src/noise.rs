//! Measures, layer by layer, what 8-bit integers lose.
//!
//! Two networks with the same factors of channels run side by side: one whose layers are all kept
//! wide, and one in 8-bit integers. Each layer of the second also runs on what the first computed,
//! so that what the layer loses by itself, its input's rounding included, can be told from what the
//! layers before it have lost.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use imgclass_kernels::{Entered, PackedLinear};

use crate::backend::{Backend, ConvPlace, FoldedConv, LinearWeights, STEM};
use crate::cpu::{Activation, Conv, CpuBackend, Rows, Stem};
use crate::error::NetworkError;
use crate::input::Input;
use crate::plan::ConvPlan;
use crate::quantised::QuantisedNetwork;
use crate::resnet::Layers;

/// What the output of one layer has lost.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNoise {
    /// The checkpoint's name of the layer.
    pub layer: String,
    /// The ratio of signal to noise that the layer alone has, in decibels: with the input of the
    /// float network, rounded as the layer reads it.
    pub own: f64,
    /// The ratio of signal to noise in the network in 8-bit integers, in decibels.
    pub total: f64,
}

impl LayerNoise {
    /// Returns the layer's own noise as a share of its signal's power.
    pub(crate) fn own_share(&self) -> f64 {
        10f64.powf(-self.own / 10.0)
    }
}

/// The sums of a layer over all pictures.
#[derive(Default)]
struct Sums {
    layer: String,
    signal: f64,
    own_noise: f64,
    total_noise: f64,
}

/// Computes in both networks.
pub(crate) struct Twin {
    inner: CpuBackend,
    sums: Mutex<Vec<Sums>>,
}

impl Twin {
    pub(crate) fn new(inner: CpuBackend) -> Self {
        Self {
            inner,
            sums: Mutex::default(),
        }
    }

    /// Returns what each layer lost, in the network's order.
    pub(crate) fn noise(&self) -> Vec<LayerNoise> {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let decibels = |signal: f64, noise: f64| {
            // A layer without any noise or signal has a ratio that is finite all the same.
            let least = f64::MIN_POSITIVE;
            10.0 * (signal.max(least) / noise.max(signal * 1e-12).max(least)).log10()
        };
        sums.iter()
            .map(|sums| LayerNoise {
                layer: sums.layer.clone(),
                own: decibels(sums.signal, sums.own_noise),
                total: decibels(sums.signal, sums.total_noise),
            })
            .collect()
    }

    /// Adds a layer's outputs: the exact one, the one of exact inputs, and the one in the network of
    /// integers.
    fn add(&self, layer: &str, outputs: [&Activation; 3]) -> Result<(), NetworkError> {
        let numbers = |x: &Activation| self.inner.activation_to_nchw(x, 0..x.images());
        let [exact, own, total] = outputs.map(numbers);
        let (exact, own, total) = (exact?, own?, total?);
        let noise = |of: &[f32]| -> f64 {
            let pairs = exact.iter().zip(of);
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        let mut all = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match all.iter().position(|sums| sums.layer == layer) {
            Some(at) => at,
            None => {
                all.push(Sums {
                    layer: layer.to_owned(),
                    ..Sums::default()
                });
                all.len() - 1
            }
        };
        let sums = &mut all[at];
        sums.signal += exact.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        sums.own_noise += noise(&own);
        sums.total_noise += noise(&total);
        Ok(())
    }
}

/// The layers of both networks.
pub(crate) struct TwinLayers<'a> {
    /// All its layers are kept wide.
    pub(crate) exact: &'a QuantisedNetwork,
    pub(crate) integers: &'a QuantisedNetwork,
}

impl Layers<Twin> for TwinLayers<'_> {
    fn stem(&self, backend: &Twin) -> Result<[Stem; 2], NetworkError> {
        let stem = |network: &QuantisedNetwork| network.stem(&backend.inner);
        Ok([stem(self.exact)?, stem(self.integers)?])
    }

    fn conv(&self, backend: &Twin, plan: &ConvPlan) -> Result<[Conv; 2], NetworkError> {
        let conv = |network: &QuantisedNetwork| Layers::conv(network, &backend.inner, plan);
        Ok([conv(self.exact)?, conv(self.integers)?])
    }

    fn linear(&self, backend: &Twin) -> Result<PackedLinear, NetworkError> {
        self.integers.linear(&backend.inner)
    }
}

/// Outputs and weights are pairs: of the exact network, and of the one in integers.
impl Backend for Twin {
    type Activation = [Activation; 2];
    type Conv = [Conv; 2];
    type Stem = [Stem; 2];
    type Linear = PackedLinear;
    type Rows = Rows;

    fn load_conv(&self, place: ConvPlace, _: FoldedConv) -> Result<[Conv; 2], NetworkError> {
        Err(unquantised(&place.name))
    }

    fn load_stem(&self, _: FoldedConv) -> Result<[Stem; 2], NetworkError> {
        Err(unquantised(STEM))
    }

    fn load_linear(&self, _: LinearWeights) -> Result<PackedLinear, NetworkError> {
        Err(unquantised("fc"))
    }

    fn loading_threads(&self) -> usize {
        self.inner.loading_threads()
    }

    fn stem(
        &self,
        [exact, integers]: &[Stem; 2],
        images: &[&Input],
        size: (usize, usize),
    ) -> Result<[Activation; 2], NetworkError> {
        let outputs = [
            self.inner.stem(exact, images, size)?,
            self.inner.stem(integers, images, size)?,
        ];
        self.add(STEM, [&outputs[0], &outputs[1], &outputs[1]])?;
        Ok(outputs)
    }

    fn conv(
        &self,
        [exact, integers]: &[Conv; 2],
        [x, rounded]: &[Activation; 2],
    ) -> Result<[Activation; 2], NetworkError> {
        let outputs = [
            self.inner.conv(exact, x)?,
            self.inner.conv(integers, rounded)?,
        ];
        let own = self.inner.conv(integers, x)?;
        self.add(exact.name(), [&outputs[0], &own, &outputs[1]])?;
        Ok(outputs)
    }

    fn conv_relu(
        &self,
        [exact, integers]: &[Conv; 2],
        [x, rounded]: &[Activation; 2],
    ) -> Result<[Activation; 2], NetworkError> {
        let outputs = [
            self.inner.conv_relu(exact, x)?,
            self.inner.conv_relu(integers, rounded)?,
        ];
        let own = self.inner.conv_relu(integers, x)?;
        self.add(exact.name(), [&outputs[0], &own, &outputs[1]])?;
        Ok(outputs)
    }

    fn conv_add_relu(
        &self,
        [exact, integers]: &[Conv; 2],
        [x, rounded]: &[Activation; 2],
        [residual, rounded_residual]: [Activation; 2],
    ) -> Result<[Activation; 2], NetworkError> {
        let copy = self.inner.copy(&residual);
        let own = self.inner.conv_add_relu(integers, x, copy)?;
        let outputs = [
            self.inner.conv_add_relu(exact, x, residual)?,
            self.inner
                .conv_add_relu(integers, rounded, rounded_residual)?,
        ];
        self.add(exact.name(), [&outputs[0], &own, &outputs[1]])?;
        Ok(outputs)
    }

    fn concatenate(&self, parts: Vec<[Activation; 2]>) -> Result<[Activation; 2], NetworkError> {
        let (exact, integers) = parts.into_iter().map(|[a, b]| (a, b)).unzip();
        Ok([
            self.inner.concatenate(exact)?,
            self.inner.concatenate(integers)?,
        ])
    }

    fn average_pool(&self, [_, integers]: &[Activation; 2]) -> Result<Rows, NetworkError> {
        self.inner.average_pool(integers)
    }

    fn linear(&self, linear: &PackedLinear, features: &Rows) -> Result<Rows, NetworkError> {
        self.inner.linear(linear, features)
    }

    fn rows_to_vec(&self, rows: Rows) -> Result<Vec<f32>, NetworkError> {
        self.inner.rows_to_vec(rows)
    }

    fn activation_to_nchw(
        &self,
        [_, integers]: &[Activation; 2],
        images: Range<usize>,
    ) -> Result<Vec<f32>, NetworkError> {
        self.inner.activation_to_nchw(integers, images)
    }

    fn enter(&self) -> Option<Entered<'_>> {
        self.inner.enter()
    }
}

/// Both networks are made of quantised layers alone ([`TwinLayers`]).
fn unquantised(layer: &str) -> NetworkError {
    NetworkError::Quantisation(format!("`{layer}` is not quantised"))
}
