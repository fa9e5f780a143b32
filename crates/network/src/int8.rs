//! How a network in 8-bit integers is obtained: from a file that `imgclass weights quantize` has
//! written, or of a float checkpoint with ranges that were kept or are measured.

use std::path::Path;
use std::time::Instant;

use imgclass_checkpoint::{OpenCheckpoint, QuantisedDescription, QuantisedFile, Weights, encode};

use crate::backend::STEM;
use crate::calibration::{self, Cache, Calibration, Fidelity, RECIPE};
use crate::choice::kernels_of;
use crate::classifier::ModelOptions;
use crate::cpu::{CpuBackend, CpuNumbers};
use crate::error::NetworkError;
use crate::input::{Input, Normalisation};
use crate::noise::LayerNoise;
use crate::plan::Plan;
use crate::quantise::Scales;
use crate::quantised::QuantisedNetwork;
use crate::resnet::ResNet;

/// A network in 8-bit integers.
pub(crate) struct Obtained {
    pub(crate) network: QuantisedNetwork,
    /// The packed network with its last layer's weights, if it was needed for a comparison.
    pub(crate) packed: Option<(ResNet<CpuBackend>, Vec<f32>)>,
    /// How it compares with the float network.
    pub(crate) fidelity: Fidelity,
    /// The ranges that it was made with; `None` for a network that was read from a file.
    pub(crate) scales: Option<Scales>,
}

/// Obtains the network of a checkpoint. `backend` makes a backend that computes in a number type.
///
/// # Errors
/// The weights cannot be used, or the network in 8-bit integers is too far from the float network.
pub(crate) fn obtain(
    checkpoint: &OpenCheckpoint,
    options: &ModelOptions,
    backend: &dyn Fn(CpuNumbers) -> CpuBackend,
) -> Result<Obtained, NetworkError> {
    let (info, threads) = (&checkpoint.info, options.threads.get());
    if let Weights::Quantised(file) = &checkpoint.weights {
        if options.calibrate.is_some() {
            return Err(NetworkError::CalibratedAlready);
        }
        return Ok(Obtained {
            network: timed("read the integers", || {
                QuantisedNetwork::read(file, info, threads)
            })?,
            packed: None,
            fidelity: file.description().comparison.into(),
            scales: None,
        });
    }
    let quantise = |scales: &Scales| {
        timed("quantised the weights", || {
            let weights = &checkpoint.weights;
            weights.take_all(|tensors| QuantisedNetwork::of(tensors, info, scales, threads))
        })
    };
    let own = own_pictures(checkpoint, options)?;
    // Ranges on the user's own pictures are not kept, as the pictures may change.
    let folder = options.cache.as_deref().filter(|_| own.is_none());
    let normalisation = Normalisation::of(&info.preprocessing);
    let cache = folder.and_then(|folder| Cache::of(folder, info, &normalisation));
    if let Some((scales, fidelity)) = cache.as_ref().and_then(Cache::read) {
        fidelity.check()?;
        match quantise(&scales) {
            Ok(network) => {
                return Ok(Obtained {
                    network,
                    packed: None,
                    fidelity,
                    scales: Some(scales),
                });
            }
            // The file lacks a layer.
            Err(NetworkError::Quantisation(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let calibration = timed("made the pictures for the ranges", || {
        Calibration::new(&checkpoint.weights, info, own, threads)
    })?;
    let mut scales = timed("measured the ranges", || {
        calibration.measure(backend(CpuNumbers::Bf16))
    })?;
    let float = timed("ran the float32 network", || {
        calibration.float_logits(backend(CpuNumbers::F32))
    })?;
    let pack = |scales: &Scales| {
        let network = quantise(scales)?;
        let packed = timed("packed the integers", || {
            network.pack(backend(CpuNumbers::F32))
        })?;
        let fidelity = timed("ran the network in 8-bit integers", || {
            calibration.compare(&packed.0, &float)
        })?;
        Ok::<_, NetworkError>(Obtained {
            network,
            packed: Some(packed),
            fidelity,
            scales: Some(scales.clone()),
        })
    };
    let mut obtained = pack(&scales)?;
    if !obtained.fidelity.is_good() {
        let plan = Plan::of(&info.architecture);
        let exact = quantise(&scales.all_wide(&plan))?;
        let noise = timed("measured the layers' noise", || {
            calibration.noise(&exact, &obtained.network, backend(CpuNumbers::F32))
        })?;
        drop(exact);
        for LayerNoise { layer, own, total } in &noise {
            tracing::debug!(layer, own_db = own, total_db = total, "signal to noise");
        }
        let groups = worst_first(&plan, &noise);
        // Twice as many each time, so that few networks are tried.
        let counts = std::iter::successors(Some(1), |count| Some(count * 2));
        for count in counts {
            let wide = groups.iter().take(count).flatten();
            scales.wide = wide.cloned().collect();
            obtained = pack(&scales)?;
            if obtained.fidelity.is_good() || count >= groups.len() {
                break;
            }
        }
        let wide = obtained.network.wide();
        tracing::warn!(
            layers = wide.join(", "),
            "8-bit integers lose too much in some layers, which are kept in bfloat16"
        );
    }
    obtained.fidelity.check()?;
    if let Some(cache) = cache {
        cache.write(&scales, &obtained.fidelity);
    }
    Ok(obtained)
}

/// Returns the pictures of the folder that the operator named, if there is one.
fn own_pictures(
    checkpoint: &OpenCheckpoint,
    options: &ModelOptions,
) -> Result<Option<Vec<Input>>, NetworkError> {
    let preprocessing = &checkpoint.info.preprocessing;
    let folder = options.calibrate.as_deref();
    folder
        .map(|folder| calibration::read_folder(folder, preprocessing))
        .transpose()
}

/// Returns the names of the layers that are kept wide together, in the order in which they should
/// be: the stem, and the convolutions of each block. What has the most noise of its own comes first.
fn worst_first(plan: &Plan, noise: &[LayerNoise]) -> Vec<Vec<String>> {
    let share = |group: &[String]| -> f64 {
        let layers = noise.iter().filter(|noise| group.contains(&noise.layer));
        layers.map(LayerNoise::own_share).sum()
    };
    let blocks = plan
        .blocks()
        .map(|block| block.names().map(str::to_owned).collect::<Vec<_>>());
    let stem = std::iter::once(vec![STEM.to_owned()]);
    let mut groups: Vec<(f64, Vec<String>)> = stem
        .chain(blocks)
        .map(|group| (share(&group), group))
        .collect();
    groups.sort_by(|a, b| b.0.total_cmp(&a.0));
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Runs a step of loading and writes its time to the log.
pub(crate) fn timed<T>(step: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::debug!(ms, "{step}");
    result
}

/// A file of 8-bit integers that is to be written.
#[derive(Debug)]
pub struct QuantisedCheckpoint {
    /// The bytes of the file.
    pub bytes: Vec<u8>,
    /// How the network compares with the float network.
    pub fidelity: Fidelity,
    /// The names of layers that are kept in bfloat16.
    pub wide_layers: Vec<String>,
    /// What each layer loses, in the network's order, if it was asked for.
    pub noise: Vec<LayerNoise>,
}

/// Makes a file of 8-bit integers of a float checkpoint. It loads as the network that `--dtype int8`
/// makes of the checkpoint, bit for bit. `with_noise` also measures what each layer loses.
///
/// # Errors
/// The weights cannot be used, are 8-bit integers already, or are not for 8-bit integers.
pub fn quantise_checkpoint(
    checkpoint: &OpenCheckpoint,
    options: &ModelOptions,
    with_noise: bool,
) -> Result<QuantisedCheckpoint, NetworkError> {
    if let Weights::Quantised(file) = &checkpoint.weights {
        return Err(file
            .refused("it holds 8-bit integers already".to_owned())
            .into());
    }
    let (isa, threads) = kernels_of(options)?;
    let backend = CpuBackend::maker(isa, threads, &checkpoint.info);
    let obtained = obtain(checkpoint, options, &backend)?;
    let (info, labels) = (&checkpoint.info, &checkpoint.labels);
    let noise = match &obtained.scales {
        Some(scales) if with_noise => {
            let own = own_pictures(checkpoint, options)?;
            let threads = options.threads.get();
            let calibration = Calibration::new(&checkpoint.weights, info, own, threads)?;
            let exact = scales.all_wide(&Plan::of(&info.architecture));
            let exact = checkpoint
                .weights
                .take_all(|tensors| QuantisedNetwork::of(tensors, info, &exact, threads))?;
            calibration.noise(&exact, &obtained.network, backend(CpuNumbers::F32))?
        }
        _ => Vec::new(),
    };
    let comparison = obtained.fidelity.into();
    let description = QuantisedDescription::of(info, labels, RECIPE, comparison);
    let bytes = encode(&description, &obtained.network.tensors())
        .map_err(|reason| NetworkError::Quantisation(format!("it cannot be encoded: {reason}")))?;
    // What would not load is not written.
    let file = QuantisedFile::from_bytes(Path::new("to be written"), bytes)?;
    QuantisedNetwork::read(&file, info, options.threads.get())?;
    Ok(QuantisedCheckpoint {
        bytes: file.into_bytes(),
        fidelity: obtained.fidelity,
        wide_layers: obtained.network.wide(),
        noise,
    })
}

/// Checks every tensor of a checkpoint: name, shape, type and numbers. Returns how a network in
/// 8-bit integers compares with the float network, if the checkpoint is one.
///
/// # Errors
/// [`NetworkError::Checkpoint`] for the first tensor that is wrong.
pub fn check_tensors(checkpoint: &OpenCheckpoint) -> Result<Option<Fidelity>, NetworkError> {
    match &checkpoint.weights {
        Weights::Quantised(file) => {
            QuantisedNetwork::read(file, &checkpoint.info, 1)?;
            Ok(Some(file.description().comparison.into()))
        }
        Weights::Formula(_) | Weights::Checkpoint(_) => {
            checkpoint.check_tensors()?;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use imgclass_checkpoint::{Overrides, WeightsSource};
    use imgclass_image::{Limits, Preprocessor, decode};
    use imgclass_kernels::Isa;
    use imgclass_test_support::shared;
    use safetensors::tensor::TensorView;
    use safetensors::{Dtype, SafeTensors};

    use super::*;
    use crate::backend::Backend;
    use crate::device::DeviceChoice;
    use crate::path::GpuPath;

    /// The reference's weights with channels of very different size, which change no answer in
    /// float32: every eighth channel between the first two convolutions of some blocks is `factor`
    /// times as large, a power of two.
    fn with_outliers(bytes: &[u8], blocks: &[&str], factor: f32) -> Vec<u8> {
        let tensors = SafeTensors::deserialize(bytes).expect("whole");
        let changed: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
            .tensors()
            .into_iter()
            .map(|(name, view): (String, TensorView)| {
                let is_part =
                    |part: &str| blocks.iter().any(|block| name == format!("{block}.{part}"));
                let dims = view.shape().to_vec();
                let (numbers, _) = view.data().as_chunks::<4>();
                let mut numbers: Vec<f32> = numbers
                    .iter()
                    .map(|bytes| f32::from_le_bytes(*bytes))
                    .collect();
                if is_part("bn1.weight") || is_part("bn1.bias") {
                    numbers.iter_mut().step_by(8).for_each(|x| *x *= factor);
                }
                if is_part("conv2.weight") {
                    let (inputs, taps) = (dims[1], dims[2] * dims[3]);
                    for (index, kernel) in numbers.chunks_exact_mut(taps).enumerate() {
                        if index % inputs % 8 == 0 {
                            kernel.iter_mut().for_each(|x| *x /= factor);
                        }
                    }
                }
                let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                (name, view.dtype(), dims, bytes)
            })
            .collect();
        let views = changed.iter().map(|(name, dtype, dims, bytes)| {
            (
                name,
                TensorView::new(*dtype, dims.clone(), bytes).expect("fits"),
            )
        });
        safetensors::serialize(views, None).expect("writes")
    }

    /// For how many of the photographs a network has the reference's class, of how many.
    fn same_class(net: &ResNet<CpuBackend>, photographs: &[(Input, usize)]) -> usize {
        let _place = net.backend().enter();
        let mut same = 0;
        for group in photographs.chunks(8) {
            let images: Vec<&Input> = group.iter().map(|(image, _)| image).collect();
            let logits = net.forward(&images, (224, 224)).expect("runs").logits;
            let logits = net.backend().rows_to_vec(logits).expect("numbers");
            for ((_, class), logits) in group.iter().zip(logits.chunks_exact(1000)) {
                same += usize::from(crate::head::top_k(logits, 1)[0].0 == *class);
            }
        }
        same
    }

    #[test]
    fn networks_with_poor_layers_keep_them_wide_and_answer_as_the_float_network_does() {
        let test = "networks with poor layers";
        let (Some(weights), Some(table)) = (
            shared("weights/resnet50.safetensors", test),
            shared("reference/images.tsv", test),
        ) else {
            return;
        };
        let root = shared("", test).expect("the reference data");
        let text = std::fs::read_to_string(table).expect("the table");
        let mut lines = text.lines();
        let heading: Vec<&str> = lines.next().expect("a heading").split('\t').collect();
        let column = |name| heading.iter().position(|c| *c == name).expect("a column");
        let (file, top1) = (column("file"), column("top1"));
        let preprocessor = Preprocessor::new(Default::default()).expect("the default");
        let limits = Limits {
            max_pixels: 1 << 27,
            max_side: 1 << 16,
            max_decoded_bytes: 1 << 30,
        };
        let photographs: Vec<(Input, usize)> = lines
            .take(200)
            .map(|line| {
                let cells: Vec<&str> = line.split('\t').collect();
                let bytes = std::fs::read(root.join(cells[file])).expect("a photograph");
                let picture = decode(&bytes, &limits).expect("a photograph");
                let class = cells[top1].parse().expect("a class");
                (Input::Pixels(preprocessor.pixels(&picture)), class)
            })
            .collect();
        let count = photographs.len();
        assert!(count >= 100, "only {count} photographs");
        let bytes = std::fs::read(weights).expect("the weights");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("changed.safetensors");
        let options = ModelOptions {
            device: DeviceChoice::Cpu,
            dtype: None,
            gpu_path: GpuPath::Auto,
            isa: None,
            threads: NonZeroUsize::new(2).expect("2"),
            cache: None,
            calibrate: None,
            overrides: Overrides::default(),
        };
        let all: Vec<String> = (1..=4)
            .flat_map(|stage| {
                (0..[3, 4, 6, 3][stage - 1]).map(move |i| format!("layer{stage}.{i}"))
            })
            .collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        // IMGCLASS_TEST_OUTLIERS makes the table of docs/numbers.md.
        let whole = std::env::var_os("IMGCLASS_TEST_OUTLIERS").is_some();
        let few: &[(&[&str], f32)] = &[(&["layer2.1"], 1024.0)];
        let many: Vec<(&[&str], f32)> = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
            .map(|factor| (&all[..], factor))
            .into_iter()
            .chain([16.0, 64.0, 256.0, 1024.0].map(|factor| (&["layer2.1"][..], factor)))
            .chain([64.0, 1024.0].map(|factor| (&["layer3.1", "layer3.2", "layer4.1"][..], factor)))
            .collect();
        for &(blocks, factor) in if whole { &many[..] } else { few } {
            std::fs::write(&path, with_outliers(&bytes, blocks, factor)).expect("writes");
            let source = WeightsSource::local(&path);
            let checkpoint = OpenCheckpoint::open(&source, &Overrides::default()).expect("opens");
            let info = &checkpoint.info;
            let threads = kernels_of(&options).expect("threads").1;
            let backend = CpuBackend::maker(Isa::detect(), threads, info);

            // The network whose layers are all integers.
            let calibration =
                Calibration::new(&checkpoint.weights, info, None, 2).expect("pictures");
            let scales = calibration
                .measure(backend(CpuNumbers::Bf16))
                .expect("ranges");
            let float = calibration
                .float_logits(backend(CpuNumbers::F32))
                .expect("runs");
            let weights = &checkpoint.weights;
            let integers = weights
                .take_all(|tensors| QuantisedNetwork::of(tensors, info, &scales, 2))
                .expect("quantises");
            let (net, _) = integers.pack(backend(CpuNumbers::F32)).expect("packs");
            let before = calibration.compare(&net, &float).expect("runs");
            let same_before = same_class(&net, &photographs);

            let obtained = obtain(&checkpoint, &options, &backend).expect("is good in the end");
            let wide = obtained.network.wide();
            let (net, _) = obtained.packed.expect("packed");
            let same = same_class(&net, &photographs);
            eprintln!(
                "{} blocks, times {factor}: error {:.3}, {same_before} of {count}; \
                 {} layers wide: error {:.3}, {same}",
                blocks.len(),
                before.logit_error,
                wide.len(),
                obtained.fidelity.logit_error,
            );
            assert!(same * 100 >= count * 95, "{same} of {count}");
            assert_eq!(wide.is_empty(), before.is_good());
            if !whole {
                assert!(!before.is_good() && wide.len() < 30, "{before:?} {wide:?}");
                assert!(wide.contains(&"layer2.1.conv1".to_owned()), "{wide:?}");
                let file = encode(
                    &QuantisedDescription::of(
                        info,
                        &checkpoint.labels,
                        RECIPE,
                        obtained.fidelity.into(),
                    ),
                    &obtained.network.tensors(),
                );
                let file = QuantisedFile::from_bytes(&path, file.expect("encodes")).expect("reads");
                let read = QuantisedNetwork::read(&file, info, 2).expect("reads");
                assert_eq!(read.wide(), wide);
            }
        }
    }
}
