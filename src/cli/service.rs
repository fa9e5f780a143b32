//! Loads the model, starts the service, and answers single inputs, for the commands that classify.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::inputs::Input;
use super::{Failure, progress};
use crate::config::{ModelArgs, ServiceArgs};
use crate::service::{Answer, Ask, Model, Observer, Service, ServiceError, Source};
use imgclass_checkpoint::WeightsSource;
use imgclass_checkpoint::hub::HubConfig;
use imgclass_engine::Refusal;
use imgclass_fetch::FetchError;
use imgclass_network::Classifier;

/// Loads the model and starts the service.
pub(super) async fn start(
    args: &ServiceArgs,
    observer: Arc<dyn Observer>,
) -> Result<Service, Failure> {
    let classifier = load_classifier(&args.model).await?;
    let options = args.service_options(classifier.info());
    let starting =
        tokio::task::spawn_blocking(move || Service::start(classifier, &options, observer));
    let service = starting.await??;
    log_decoding(&service);
    Ok(service)
}

/// Says what holds the processes that decode.
fn log_decoding(service: &Service) {
    match service.confinement() {
        Some(limits) => tracing::info!(%limits, "images are decoded in processes of their own"),
        None => tracing::warn!(
            "images are decoded in this process, which a hostile image can end or keep busy"
        ),
    }
}

/// Finds the weights, downloads them from the hub if necessary, and loads them.
pub(super) async fn load_classifier(args: &ModelArgs) -> Result<Classifier, Failure> {
    let choice = args.weights.choice(Path::new("."));
    let source = WeightsSource::find(
        &choice,
        &HubConfig::from_env(),
        Some(Arc::new(progress::download_bars())),
    )
    .await?;
    let options = args.model_options();
    let classifier =
        tokio::task::spawn_blocking(move || Classifier::load(&source, &options)).await??;
    log_loaded(&classifier);
    Ok(classifier)
}

fn log_loaded(classifier: &Classifier) {
    let info = classifier.info();
    tracing::info!(
        model = info.checkpoint.id,
        revision = info.checkpoint.revision,
        device = info.device,
        dtype = %info.compute_dtype,
        path = %info.compute_path,
        instruction_set = info.isa,
        threads = info.threads,
        ms = u64::try_from(info.load_time.as_millis()).unwrap_or(u64::MAX),
        "loaded the model"
    );
    if let Some(fidelity) = info.fidelity {
        tracing::info!(
            pictures = fidelity.pictures,
            same_class = fidelity.same_class,
            logit_error = format!("{:.3}", fidelity.logit_error),
            "compared int8 with float32 on generated pictures"
        );
    }
    if !info.checkpoint.trained {
        tracing::warn!(
            "the weights are untrained (random): answers have the right form and mean nothing"
        );
    }
}

/// Returns the model that a command answers by: the head in a file, or the checkpoint's own classes.
///
/// # Errors
///
/// Returns an error if the file is damaged or belongs to another network.
pub(super) fn load_model(service: &Service, head: Option<&Path>) -> Result<Model, Failure> {
    Ok(match head {
        None => Model::Checkpoint,
        Some(path) => Model::Head(Arc::new(service.load_head("head", path)?)),
    })
}

/// Returns how many inputs are worked on at one time: read, decoded, or in the model.
///
/// This is four times what the model works on. The rest is read and decoded meanwhile, with room
/// for a slow file among them.
pub(super) fn inputs_at_once(service: &Service, args: &ServiceArgs) -> usize {
    (4 * service.images_at_once()).min(args.limits.max_concurrent_requests)
}

/// Reads an input and runs it through the model.
///
/// # Errors
///
/// Returns a text for the user that says why there is no answer.
pub(super) async fn answer(service: &Service, input: Input, ask: Ask) -> Result<Answer, String> {
    let source = input.read(service.max_fetched_bytes()).await?;
    answer_source(service, source, ask).await
}

/// How long a command waits before it asks again for a place.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// Runs an image that has been read through the model.
///
/// # Errors
///
/// As [`answer`].
pub(super) async fn answer_source(
    service: &Service,
    source: Source,
    ask: Ask,
) -> Result<Answer, String> {
    loop {
        let answer = service.answer_one(source.clone(), ask).await;
        match answer {
            // The places shrink while the network is slower than usual. A client would try again
            // later, and so does a command: its image must not be lost by it.
            Err(ServiceError::Refused(Refusal::Full(_))) => tokio::time::sleep(TRY_AGAIN).await,
            other => return other.map_err(|error| error_text(&error)),
        }
    }
}

/// Describes an error for the user of the command line.
///
/// That user is the operator, so the text is the one for the log, which gives the reason in full,
/// and not the one for strangers. Only for what an image server did, the public text reads better.
fn error_text(error: &ServiceError) -> String {
    match error {
        ServiceError::Fetch(error @ FetchError::Answer(_)) => error.public_message(),
        other => other.to_string(),
    }
}
