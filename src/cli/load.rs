//! From the command line's choice of weights to a loaded model or a running service; what `serve`, `classify` and `bench` share.

use std::path::Path;
use std::sync::Arc;

use super::{Failure, progress};
use crate::config::{ModelArgs, ServiceArgs};
use crate::service::{Observer, Service};
use imgclass_checkpoint::WeightsSource;
use imgclass_checkpoint::hub::HubConfig;
use imgclass_kernels::LargeBlocks;
use imgclass_network::Classifier;

/// Finds the weights, on the hub if need be, and loads them.
pub(super) async fn classifier(args: &ModelArgs) -> Result<Classifier, Failure> {
    let choice = args.weights.choice(Path::new("."));
    let source = WeightsSource::find(
        &choice,
        &HubConfig::from_env(),
        Some(Arc::new(progress::downloads())),
    )
    .await?;
    let options = args.model_options();
    let classifier =
        tokio::task::spawn_blocking(move || Classifier::load(&source, &options)).await??;
    // What loading leaves has other sizes than what forward passes ask for.
    LargeBlocks::release();
    LargeBlocks::keep_for(classifier.info().passes);
    announce(&classifier);
    Ok(classifier)
}

/// The service over the loaded model, warm.
pub(super) async fn service(
    args: &ServiceArgs,
    observer: Arc<dyn Observer>,
) -> Result<Service, Failure> {
    let classifier = classifier(&args.model).await?;
    let options = args.service_options(classifier.info());
    Ok(
        tokio::task::spawn_blocking(move || Service::start(classifier, &options, observer))
            .await??,
    )
}

fn announce(classifier: &Classifier) {
    let info = classifier.info();
    tracing::info!(
        model = info.checkpoint.id,
        revision = info.checkpoint.revision,
        device = info.device,
        dtype = %info.compute_dtype,
        instruction_set = info.isa,
        threads = info.threads,
        ms = u64::try_from(info.load_time.as_millis()).unwrap_or(u64::MAX),
        "loaded the model"
    );
    if !info.checkpoint.trained {
        tracing::warn!(
            "the weights are untrained (random): answers have the right form and mean nothing"
        );
    }
}
