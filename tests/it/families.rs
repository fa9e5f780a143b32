//! Checkpoints as the families of the hub have them, names and configuration in their real form, through a small hub on loopback and the
//! service's own code: what is loaded, how images are prepared, what the classes are called, and the logits.

use std::path::Path;

use imgclass_checkpoint::hub::{HubConfig, HubLimits};
use imgclass_checkpoint::{
    Architecture, CheckpointError, LabelSource, Overrides, Preset, Variant, WeightsChoice,
    WeightsSource,
};
use imgclass_image::{Channels, CropOffset, Filter, Preprocessing, Resize, Scale, Size};
use imgclass_network::{Classifier, ModelOptions, Want};
use imgclass_test_support::checkpoints::{halved, in_transformers, renamed, safetensors, tensors};
use imgclass_test_support::hub_server::HubServer;
use serde_json::{Value, json};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One repository of a test's hub, fetched.
struct Fetched {
    _server: HubServer,
    cache: tempfile::TempDir,
    hub: HubConfig,
    model: &'static str,
}

impl Fetched {
    fn new(model: &'static str, files: &[(&str, &[u8])]) -> Self {
        let server = HubServer::start();
        server.commit(model, "main", COMMIT, files);
        // Absolute, as the real hub's: a relative one is followed as a change of name.
        server.store_at(&server);
        let cache = tempfile::tempdir().expect("a folder");
        let hub = HubConfig {
            endpoint: Some(server.url()),
            cache_dir: cache.path().to_owned(),
            token: None,
            offline: false,
            limits: HubLimits::default(),
        };
        Self {
            _server: server,
            cache,
            hub,
            model,
        }
    }

    async fn source(&self, file: Option<&str>) -> Result<WeightsSource, CheckpointError> {
        let choice = WeightsChoice::Hub {
            model: self.model.to_owned(),
            revision: "main".to_owned(),
            file: file.map(str::to_owned),
        };
        WeightsSource::find(&choice, &self.hub, None).await
    }

    async fn load(&self, file: Option<&str>, overrides: Overrides) -> Classifier {
        let source = self.source(file).await.expect("it is fetched");
        let options = ModelOptions {
            overrides,
            ..crate::support::model::options()
        };
        Classifier::load(&source, &options).expect("it loads")
    }
}

fn logits(classifier: &Classifier) -> Vec<f32> {
    let wave = |i: usize| ((i % 251) as f32 / 125.0) - 1.0;
    let image: Vec<f32> = (0..classifier.input_len()).map(wave).collect();
    let outputs = classifier.run_prepared(&[&image], Want::default());
    outputs.expect("a forward pass").remove(0).logits
}

/// The logits of the formula's network for the image of an input of this side.
fn expected(architecture: Architecture, classes: usize, side: usize) -> Vec<f32> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("expected.safetensors");
    std::fs::write(&file, safetensors(&tensors(&architecture, classes))).expect("written");
    let config = json!({ "architecture": architecture.name(),
        "imgclass": { "variant": architecture.variant().to_string() },
        "pretrained_cfg": { "input_size": [3, side, side] } });
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    let source = WeightsSource::local(&file);
    logits(&Classifier::load(&source, &crate::support::model::options()).expect("it loads"))
}

/// timm's own form, with the fields that its tool writes.
fn timm(architecture: &str, classes: usize) -> Value {
    json!({
        "architecture": architecture, "num_classes": classes, "num_features": 512, "global_pool": "avg",
        "pretrained_cfg": {
            "tag": "a1_in1k", "custom_load": false, "input_size": [3, 96, 96], "test_input_size": [3, 128, 128],
            "fixed_input_size": false, "interpolation": "bicubic", "crop_pct": 0.95, "test_crop_pct": 1.0,
            "crop_mode": "center", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
            "num_classes": classes, "pool_size": [7, 7], "first_conv": "conv1", "classifier": "fc",
            "origin_url": "https://github.com/huggingface/pytorch-image-models", "paper_ids": "arXiv:2110.00476"
        }
    })
}

/// transformers' form as its tool wrote it in 2022.
fn transformers(labels: Value) -> Value {
    json!({
        "architectures": ["ResNetForImageClassification"], "depths": [2, 2, 2, 2], "downsample_in_first_stage": false,
        "embedding_size": 64, "hidden_act": "relu", "hidden_sizes": [64, 128, 256, 512], "id2label": labels,
        "layer_type": "basic", "model_type": "resnet", "num_channels": 3, "torch_dtype": "float32",
        "transformers_version": "4.18.0.dev0"
    })
}

fn conv_next(size: Value, crop_pct: Value, resample: u8) -> Value {
    json!({
        "crop_pct": crop_pct, "do_normalize": true, "do_resize": true, "feature_extractor_type": "ConvNextFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": resample, "size": size
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn timms_family_is_loaded_as_its_configuration_says() {
    let network = Architecture::RESNET18;
    let weights = safetensors(&tensors(&network, 1000));
    let config = timm("resnet18", 1000).to_string();
    let files: [(&str, &[u8]); 2] = [
        ("config.json", config.as_bytes()),
        ("model.safetensors", &weights),
    ];
    let hub = Fetched::new("timm/resnet18.a1_in1k", &files);
    let classifier = hub.load(None, Overrides::default()).await;
    let info = classifier.info();
    assert_eq!(info.checkpoint.architecture, network);
    assert_eq!(info.checkpoint.id, "timm/resnet18.a1_in1k");
    assert_eq!(info.checkpoint.preprocessing.crop, Size::square(128));
    assert_eq!(
        info.checkpoint.preprocessing.resize,
        Resize::ShorterSide(128)
    );
    assert_eq!(info.checkpoint.preprocessing.filter, Filter::Bicubic);
    assert_eq!(
        info.checkpoint.preprocessing.crop_offset,
        CropOffset::HalfToEven
    );
    assert_eq!(classifier.labels().source(), LabelSource::ImageNet);
    assert!(logits(&classifier) == expected(network, 1000, 128));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fine_tuned_half_precision_checkpoint_of_timm_has_its_own_classes() {
    let network = Architecture::RESNET34;
    let weights = safetensors(&halved(tensors(&network, 3)));
    let mut config = timm("resnet34.a1_in1k", 3);
    config["label_names"] = json!(["n02504458", "rose", "tulip"]);
    config["label_descriptions"] =
        json!({ "n02504458": "African elephant, Loxodonta africana", "rose": "a rose" });
    config["model_args"] = json!({ "drop_rate": 0.1 });
    let config = config.to_string();
    let files: [(&str, &[u8]); 2] = [
        ("config.json", config.as_bytes()),
        ("model.safetensors", &weights),
    ];
    let hub = Fetched::new("somebody/flowers", &files);
    let classifier = hub.load(None, Overrides::default()).await;
    assert_eq!(classifier.info().checkpoint.stored_type, "F16");
    assert_eq!(classifier.labels().source(), LabelSource::Checkpoint);
    let labels: Vec<_> = classifier
        .labels()
        .iter()
        .map(|l| (l.wnid.as_deref(), &*l.name))
        .collect();
    assert_eq!(
        labels,
        [
            (Some("n02504458"), "African elephant"),
            (None, "rose"),
            (None, "tulip")
        ]
    );
    let (found, exact) = (logits(&classifier), expected(network, 3, 128));
    let largest = exact.iter().fold(1f32, |max, x| max.max(x.abs()));
    for (found, exact) in found.iter().zip(&exact) {
        assert!((found - exact).abs() < 0.05 * largest, "{found}, {exact}");
    }

    let names = tempfile::tempdir().expect("a folder");
    let path = names.path().join("names.txt");
    std::fs::write(&path, "one\r\ntwo, zwei\r\nthree\r\n").expect("written");
    let overrides = Overrides {
        labels: Some(path),
        ..Overrides::default()
    };
    let classifier = hub.load(None, overrides).await;
    assert_eq!(classifier.labels().source(), LabelSource::File);
    assert_eq!(classifier.labels().get(1).map(|l| l.names.len()), Some(2));
    assert_eq!(classifier.labels().find("zwei"), Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn transformers_family_is_loaded_with_its_names_its_preprocessor_and_its_labels() {
    let network = Architecture::RESNET18;
    let named = renamed(tensors(&network, 4), in_transformers);
    let weights = safetensors(&named);
    let config =
        transformers(json!({ "0": "tench, Tinca tinca", "1": "cat", "2": "dog", "3": "ox" }));
    let config = config.to_string();
    let preprocessor = conv_next(json!(112), json!(0.875), 3).to_string();
    let files: [(&str, &[u8]); 4] = [
        ("config.json", config.as_bytes()),
        ("preprocessor_config.json", preprocessor.as_bytes()),
        ("model.safetensors", &weights),
        ("pytorch_model.bin", b"not looked at"),
    ];
    let hub = Fetched::new("microsoft/resnet-18", &files);
    let classifier = hub.load(None, Overrides::default()).await;
    let info = classifier.info();
    assert_eq!(info.checkpoint.architecture, network);
    assert_eq!(info.checkpoint.preprocessing.crop, Size::square(112));
    assert_eq!(
        info.checkpoint.preprocessing.resize,
        Resize::ShorterSide(128)
    );
    assert_eq!(info.checkpoint.preprocessing.filter, Filter::Bicubic);
    assert_eq!(
        info.checkpoint.preprocessing.crop_offset,
        CropOffset::HalfDown
    );
    assert_eq!(classifier.labels().source(), LabelSource::Checkpoint);
    assert_eq!(classifier.labels().find("tinca tinca"), Ok(0));
    assert!(logits(&classifier) == expected(network, 4, 112));
    // All of it is in the cache now, and is found there without a call.
    let offline = HubConfig {
        offline: true,
        endpoint: Some("http://127.0.0.1:1".to_owned()),
        ..hub.hub.clone()
    };
    let again = Fetched {
        hub: offline,
        ..hub
    };
    let classifier = again.load(None, Overrides::default()).await;
    assert_eq!(
        classifier.info().checkpoint.preprocessing.crop,
        Size::square(112)
    );
    assert!(
        again
            .cache
            .path()
            .join("models--microsoft--resnet-18")
            .is_dir()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_of_several_networks_gives_resnet_50_unless_another_file_is_named() {
    let eighteen = Architecture::RESNET18;
    let weights = safetensors(&tensors(&eighteen, 1000));
    let names = [18, 34, 50, 101, 152].map(|depth| format!("resnet{depth}.safetensors"));
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| {
            (
                name.as_str(),
                if name.contains("18") {
                    &weights[..]
                } else {
                    name.as_bytes()
                },
            )
        })
        .collect();
    let hub = Fetched::new("lmz/candle-resnet", &files);
    let path = |source: WeightsSource| match source {
        WeightsSource::Files(files) => files.weights,
        random => panic!("{random:?}"),
    };
    // By name first: what is cached then must not pass for the repository's own choice.
    let classifier = hub
        .load(Some("resnet18.safetensors"), Overrides::default())
        .await;
    assert_eq!(classifier.info().checkpoint.architecture, eighteen);
    assert_eq!(
        classifier.info().checkpoint.preprocessing,
        Default::default()
    );
    let offline = HubConfig {
        offline: true,
        ..hub.hub.clone()
    };
    let choice = WeightsChoice::Hub {
        model: hub.model.to_owned(),
        revision: COMMIT.to_owned(),
        file: None,
    };
    let error = WeightsSource::find(&choice, &offline, None)
        .await
        .expect_err("not cached");
    assert!(error.to_string().contains("not in the cache"), "{error}");
    let found = hub.source(None).await.expect("it is fetched");
    assert!(path(found).ends_with("resnet50.safetensors"));
    let found = hub
        .source(Some("resnet34.safetensors"))
        .await
        .expect("it is fetched");
    assert!(path(found).ends_with("resnet34.safetensors"));
    let found = WeightsSource::find(&choice, &offline, None)
        .await
        .expect("cached");
    assert!(path(found).ends_with("resnet50.safetensors"));
    let error = hub
        .source(Some("resnet26.safetensors"))
        .await
        .expect_err("no such file");
    assert!(
        error.to_string().contains("no resnet26.safetensors, but 5"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_with_a_pickle_alone_points_to_the_conversion() {
    let hub = Fetched::new(
        "somebody/old",
        &[("pytorch_model.bin", b"x"), ("config.json", b"{}")],
    );
    let error = hub.source(None).await.expect_err("no weights");
    assert!(
        error
            .to_string()
            .contains("imgclass weights convert pytorch_model.bin"),
        "{error}"
    );
}

#[test]
fn what_the_operator_says_is_held_over_what_the_checkpoint_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("net.safetensors");
    std::fs::write(&file, safetensors(&tensors(&Architecture::RESNET50, 1000))).expect("written");
    let load = |overrides: Overrides| {
        let options = ModelOptions {
            overrides,
            ..crate::support::model::options()
        };
        Classifier::load(&WeightsSource::local(&file), &options).expect("it loads")
    };
    let plain = load(Overrides::default());
    assert_eq!(
        plain.info().checkpoint.architecture.variant(),
        Variant::V1_5
    );
    let first = load(Overrides {
        variant: Some(Variant::V1),
        preprocessing: Some(Preset::Caffe),
        labels: None,
    });
    assert_eq!(first.info().checkpoint.architecture.variant(), Variant::V1);
    assert_eq!(
        first.info().checkpoint.preprocessing.channels,
        Channels::Bgr
    );
    assert_eq!(first.info().checkpoint.preprocessing.scale, Scale::Byte);
    assert!(logits(&plain) != logits(&first));
    let version_one = Architecture::RESNET50.with_variant(Variant::V1);
    assert!(logits(&first) == expected(version_one, 1000, 224));
}

/// What a preprocessor's configuration comes to, or why it is refused.
fn prepared(preprocessor: &Value) -> Result<Preprocessing, CheckpointError> {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, path) = (
        folder.path().join("config.json"),
        folder.path().join("preprocessor_config.json"),
    );
    std::fs::write(&config, transformers(Value::Null).to_string()).expect("written");
    std::fs::write(&path, preprocessor.to_string()).expect("written");
    imgclass_checkpoint::Description::read(&config, Some(&path)).map(|said| said.preprocessing)
}

#[test]
fn every_preprocessor_comes_to_what_transformers_does_with_it() {
    use Filter::{Bicubic, Bilinear, Lanczos};
    use Resize::ShorterSide;
    let exact = |height, width| Resize::Exact(Size { height, width });
    let with = |kind: &str, fields: Value| {
        let mut all = json!({ "image_processor_type": kind, "do_resize": true, "do_rescale": true,
            "rescale_factor": 0.00392156862745098, "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5] });
        let map = all.as_object_mut().expect("an object");
        map.extend(fields.as_object().expect("an object").clone());
        all
    };
    let table = [
        (
            conv_next(json!(224), json!(0.875), 3),
            ShorterSide(256),
            (224, 224),
            Bicubic,
        ),
        (
            conv_next(json!(224), Value::Null, 2),
            ShorterSide(256),
            (224, 224),
            Bilinear,
        ),
        (
            conv_next(json!({ "shortest_edge": 224 }), json!(0.95), 1),
            ShorterSide(235),
            (224, 224),
            Lanczos,
        ),
        // From 384 on the whole image is squeezed into the square.
        (
            conv_next(json!({ "shortest_edge": 383 }), json!(1.0), 3),
            ShorterSide(383),
            (383, 383),
            Bicubic,
        ),
        (
            conv_next(json!({ "shortest_edge": 384 }), json!(0.875), 3),
            exact(384, 384),
            (384, 384),
            Bicubic,
        ),
        (
            with(
                "ConvNextImageProcessorFast",
                json!({ "size": { "shortest_edge": 288 }, "crop_pct": 0.96 }),
            ),
            ShorterSide(300),
            (288, 288),
            Bicubic,
        ),
        (
            with(
                "ViTImageProcessor",
                json!({ "size": { "height": 224, "width": 192 } }),
            ),
            exact(224, 192),
            (224, 192),
            Bilinear,
        ),
        (
            with("ViTFeatureExtractor", json!({ "size": 224, "resample": 3 })),
            exact(224, 224),
            (224, 224),
            Bicubic,
        ),
        (
            with(
                "BitImageProcessor",
                json!({ "size": { "shortest_edge": 448 }, "do_center_crop": true, "crop_size": { "height": 448, "width": 448 } }),
            ),
            ShorterSide(448),
            (448, 448),
            Bicubic,
        ),
        (
            with(
                "CLIPImageProcessor",
                json!({ "size": { "shortest_edge": 256 }, "crop_size": 224 }),
            ),
            ShorterSide(256),
            (224, 224),
            Bicubic,
        ),
        (
            with(
                "DeiTImageProcessor",
                json!({ "size": { "height": 256, "width": 256 }, "crop_size": { "height": 224, "width": 224 } }),
            ),
            exact(256, 256),
            (224, 224),
            Bicubic,
        ),
        (
            with(
                "DeiTImageProcessor",
                json!({ "size": { "height": 256, "width": 256 }, "do_center_crop": false }),
            ),
            exact(256, 256),
            (256, 256),
            Bicubic,
        ),
    ];
    for (file, resize, input, filter) in table {
        let cfg = prepared(&file).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert_eq!(cfg.resize, resize, "{file}");
        let crop = (cfg.crop.height, cfg.crop.width);
        assert_eq!(crop, input, "{file}");
        assert_eq!(
            (cfg.filter, cfg.crop_offset),
            (filter, CropOffset::HalfDown),
            "{file}"
        );
        assert_eq!(
            (cfg.channels, cfg.scale),
            (Channels::Rgb, Scale::Unit),
            "{file}"
        );
    }
    let caffe = with(
        "ConvNextImageProcessor",
        json!({ "size": 224, "do_rescale": false,
        "do_flip_channel_order": true, "image_mean": [103.939, 116.779, 123.68], "image_std": [1.0, 1.0, 1.0] }),
    );
    let cfg = prepared(&caffe).expect("Caffe's");
    assert_eq!((cfg.channels, cfg.scale), (Channels::Bgr, Scale::Byte));
    let refused = [
        (
            json!({ "do_resize": false, "size": 224 }),
            "`do_resize` is false",
        ),
        (
            json!({ "size": 224, "image_mean": null }),
            "no `image_mean`",
        ),
        (
            json!({ "size": 224, "image_std": [0.5, 0.0, 0.5] }),
            "`std` is [0.5, 0.0, 0.5]",
        ),
        (
            json!({ "size": 224, "image_std": [0.5, 0.5] }),
            "`image_std`",
        ),
        (
            json!({ "size": 224, "rescale_factor": 0.1 }),
            "`rescale_factor` is 0.1",
        ),
        (json!({ "size": 224, "resample": 4 }), "`resample` is 4"),
        (json!({ "size": 4096 }), "4096x4096"),
        (json!({ "size": 0 }), "0x0"),
        (json!({ "size": { "longest_edge": 3 } }), "`size`"),
        (json!({ "size": 224, "crop_pct": 0.0 }), "`crop_pct` is 0"),
        (
            json!({ "size": 224, "image_processor_type": "EfficientNetImageProcessor" }),
            "EfficientNet",
        ),
        (
            json!({ "size": 224, "crop_size": 256, "image_processor_type": "BitImageProcessor" }),
            "no less than the crop",
        ),
        (
            json!({ "size": 224, "do_center_crop": false, "image_processor_type": "BitImageProcessor" }),
            "`do_center_crop`",
        ),
    ];
    for (fields, part) in refused {
        let file = with("ConvNextImageProcessor", fields);
        let error = prepared(&file).expect_err(part).to_string();
        assert!(
            error.contains(part) && error.contains("preprocessor_config.json"),
            "{part}: {error}"
        );
    }
}

/// `read` of a configuration on its own.
fn described(config: &Value) -> Result<imgclass_checkpoint::Description, CheckpointError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    std::fs::write(&path, config.to_string()).expect("written");
    imgclass_checkpoint::Description::read(&path, None)
}

#[test]
fn a_configuration_of_another_network_is_refused_by_the_field_that_says_so() {
    fn change(mut config: Value, changes: &Value) -> Value {
        for (field, value) in changes.as_object().expect("an object") {
            match value {
                Value::Object(_) if config[field].is_object() => {
                    config[field] = change(config[field].clone(), value)
                }
                _ => config[field] = value.clone(),
            }
        }
        config
    }
    let theirs = transformers(json!({ "0": "a", "1": "b" }));
    let bottleneck = json!({ "layer_type": "bottleneck", "depths": [3, 4, 23, 3], "hidden_sizes": [256, 512, 1024, 2048], "downsample_in_bottleneck": true });
    let said = described(&change(theirs.clone(), &bottleneck)).expect("ResNet-101");
    let network = said.architecture.expect("a network");
    assert_eq!(
        (network.name(), network.variant()),
        ("resnet101", Variant::V1)
    );
    let squash = json!({ "pretrained_cfg": { "crop_mode": "squash", "interpolation": "lanczos", "crop_pct": 0.5, "test_crop_pct": null } });
    let said = described(&change(timm("resnet18", 5), &squash)).expect("squashed");
    assert_eq!(said.preprocessing.resize, Resize::Exact(Size::square(256)));
    assert_eq!(said.preprocessing.filter, Filter::Lanczos);
    let table = [
        (timm("resnet50d", 5), json!({}), "\"resnet50d\""),
        (
            timm("vit_base_patch16_224", 5),
            json!({}),
            "resnet18, resnet34",
        ),
        (
            timm("resnet18", 5),
            json!({ "model_args": { "output_stride": 8 } }),
            "`output_stride`",
        ),
        (
            timm("resnet18", 5),
            json!({ "global_pool": "max" }),
            "`global_pool`",
        ),
        (
            timm("resnet18", 5),
            json!({ "pretrained_cfg": { "crop_mode": "border" } }),
            "\"border\"",
        ),
        (
            timm("resnet18", 5),
            json!({ "pretrained_cfg": { "test_input_size": [1, 224, 224] } }),
            "1 channels",
        ),
        (
            timm("resnet18", 5),
            json!({ "pretrained_cfg": { "test_input_size": [3, 224, 256] } }),
            "224x256",
        ),
        (
            timm("resnet18", 5),
            json!({ "pretrained_cfg": { "test_input_size": [3, 10_000_000_000u64, 10_000_000_000u64] } }),
            "10000000000",
        ),
        (
            timm("resnet18", 5),
            json!({ "pretrained_cfg": { "interpolation": "nearest" } }),
            "`pretrained_cfg.interpolation`",
        ),
        (
            timm("resnet18", 5),
            json!({ "pretrained_cfg": { "std": [0.2, 0.2, 0.0] } }),
            "`std`",
        ),
        (
            timm("resnet18", 5),
            json!({ "pretrained_cfg": { "mean": [1e30, 0, 0] } }),
            "the mean",
        ),
        (
            timm("resnet18", 5),
            json!({ "imgclass": { "variant": "v2" } }),
            "`imgclass.variant`",
        ),
        (
            timm("resnet18", 5),
            json!({ "imgclass": { "batch_norm_epsilon": 0 } }),
            "batch_norm_epsilon",
        ),
        (
            timm("resnet18", 5),
            json!({ "imgclass": { "scale": 2 } }),
            "`imgclass.scale`",
        ),
        (
            timm("resnet18", 5),
            json!({ "imgclass": { "colour": "bgr" } }),
            "`colour`",
        ),
        (theirs.clone(), json!({ "model_type": "vit" }), "\"vit\""),
        (
            theirs.clone(),
            json!({ "depths": [2, 2, 3, 2] }),
            "[2, 2, 3, 2]",
        ),
        (theirs.clone(), json!({ "depths": [2, 2] }), "`depths`"),
        (
            theirs.clone(),
            json!({ "hidden_sizes": [64, 128, 256, 511] }),
            "511",
        ),
        (
            theirs.clone(),
            json!({ "embedding_size": 32 }),
            "`embedding_size` is 32",
        ),
        (theirs.clone(), json!({ "hidden_act": "gelu" }), "\"gelu\""),
        (
            theirs.clone(),
            json!({ "downsample_in_first_stage": true }),
            "`downsample_in_first_stage`",
        ),
        (theirs.clone(), json!({ "layer_type": "wide" }), "\"wide\""),
        (
            theirs.clone(),
            json!({ "num_channels": 1 }),
            "`num_channels` is 1",
        ),
        (
            theirs,
            json!({ "id2label": { "5": "f" } }),
            "none for class 2",
        ),
    ];
    for (config, changes, part) in table {
        let config = change(config, &changes);
        let error = described(&config).map(|_| ()).expect_err(part).to_string();
        assert!(
            error.contains(part) && error.contains("config.json"),
            "{part}: {error}"
        );
    }
}

#[test]
fn real_weights_under_transformers_names_give_the_logits_that_they_give_under_their_own() {
    let test = "real weights under transformers' names";
    let Some(weights) = imgclass_test_support::shared("weights/resnet50.safetensors", test) else {
        return;
    };
    let load = |path: &Path| {
        Classifier::load(
            &WeightsSource::local(path),
            &crate::support::model::options(),
        )
        .expect("it loads")
    };
    let bytes = std::fs::read(&weights).expect("the weights");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("whole");
    let views = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (in_transformers(&name), view));
    let folder = tempfile::tempdir().expect("a folder");
    let renamed = folder.path().join("model.safetensors");
    safetensors::serialize_to_file(views, None, &renamed).expect("written");
    // The labels of a table that says nothing of WordNet: they are known by their names.
    let theirs = load(&weights);
    let labels: serde_json::Map<String, Value> = theirs
        .labels()
        .iter()
        .enumerate()
        .map(|(index, label)| (index.to_string(), label.names.join(", ").into()))
        .collect();
    let config = json!({ "model_type": "resnet", "id2label": labels });
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    let preprocessor = conv_next(json!(224), json!(0.875), 2).to_string();
    std::fs::write(folder.path().join("preprocessor_config.json"), preprocessor).expect("written");
    let ours = load(&renamed);
    assert_eq!(ours.labels().source(), LabelSource::Checkpoint);
    assert_eq!(ours.labels().find("n02504458"), Ok(386));
    assert!(logits(&ours) == logits(&theirs));
}
