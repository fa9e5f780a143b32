//! Options that bound how many requests and images are worked on at one time, and their memory.

use std::num::NonZeroUsize;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use super::values::{parse_batch_delay, parse_decode_memory, parse_duration, whole_number_parser};
use imgclass_decode::{DecodeOptions, Isolation};
use imgclass_engine::EngineOptions;
use imgclass_image::Limits;
use imgclass_network::ModelInfo;

/// The options that bound requests, batches and images.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// The number of requests that are worked on at one time; further ones are answered 503 at once
    // On the slowest machine that we know, at 20 images a second, the last of 512 requests waits 26
    // s: less than the default of --request-timeout.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 512,
        value_parser = whole_number_parser(1..=65_536),
        env = "IMGCLASS_MAX_CONCURRENT_REQUESTS"
    )]
    pub max_concurrent_requests: usize,

    /// The number of prepared images that may wait for the model [default: 64, or two full batches
    /// for each forward pass at one time if that is more]
    #[arg(
        long,
        value_name = "N",
        value_parser = whole_number_parser(1..=4096),
        env = "IMGCLASS_QUEUE_CAPACITY"
    )]
    pub queue_capacity: Option<usize>,

    /// The number of images in one forward pass at most [default: 4 on the CPU, where up to eight
    /// passes run at one time; 64 on a GPU]
    #[arg(
        long,
        value_name = "N",
        value_parser = whole_number_parser(1..=256),
        env = "IMGCLASS_MAX_BATCH_SIZE"
    )]
    pub max_batch_size: Option<usize>,

    /// How long a forward pass that is not full waits for more images; 0s means not at all
    #[arg(
        long,
        value_name = "TIME",
        default_value = "0s",
        value_parser = parse_batch_delay,
        env = "IMGCLASS_MAX_BATCH_DELAY"
    )]
    pub max_batch_delay: humantime::Duration,

    /// The longest time from a request's admission to its answer; a later answer is 504
    #[arg(
        long,
        value_name = "TIME",
        default_value = "30s",
        value_parser = parse_duration,
        env = "IMGCLASS_REQUEST_TIMEOUT"
    )]
    pub request_timeout: humantime::Duration,

    /// The number of pixels of one image at most, which is checked before the image is decoded
    // The default is Pillow's MAX_IMAGE_PIXELS, above which Pillow warns; it refuses twice as many.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 89_478_485,
        value_parser = clap::value_parser!(u64).range(1..=1_000_000_000),
        env = "IMGCLASS_MAX_PIXELS"
    )]
    pub max_pixels: u64,

    /// The memory for all images that are being decoded, together; also the most for one image
    // A forward pass needs far less. Without this bound, many large images at one time would fill a
    // container's memory.
    #[arg(
        long,
        value_name = "SIZE",
        default_value_t = ByteSize::mib(768),
        value_parser = parse_decode_memory,
        env = "IMGCLASS_MAX_DECODED_BYTES"
    )]
    pub max_decoded_bytes: ByteSize,

    /// The longest time for decoding one image; a slower one is answered 422
    #[arg(
        long,
        value_name = "TIME",
        default_value = "10s",
        value_parser = parse_duration,
        env = "IMGCLASS_DECODE_TIMEOUT"
    )]
    pub decode_timeout: humantime::Duration,

    /// Decode large JPEGs at a half, a quarter or an eighth of their size, where they are then still
    /// twice as large as the network's resize makes them; faster, but answers change a little
    #[arg(long, env = "IMGCLASS_FAST_DECODE")]
    pub fast_decode: bool,

    /// Decode in the service's own process, without protection against hostile images; only for
    /// debugging
    #[arg(long, env = "IMGCLASS_NO_DECODE_SANDBOX")]
    pub no_decode_sandbox: bool,
}

/// The largest width or height of an image in pixels, which is JPEG's own limit.
const MAX_SIDE: u32 = 65_535;

/// The default of `--max-batch-size` on the CPU.
///
/// Each thread runs batches of its own, and a thread gains nothing from batches larger than 4
/// (`docs/benchmarks.md`, "The service under load").
const CPU_BATCH: usize = 4;

/// The default of `--max-batch-size` on a GPU.
///
/// A GPU is busy only with thousands of pixels in each layer, and the last layers have 49 for an
/// image. Frameworks are usually compared at this size. It was not measured here.
const GPU_BATCH: usize = 64;

/// The least default of `--queue-capacity`, in images.
///
/// A prepared image takes 0.15 MB, so 64 take 10 MB. On the CPU they are 16 full batches.
const QUEUE_CAPACITY: usize = 64;

/// The time after which a batch may count as stuck.
///
/// No batch takes as long as this on any machine on which the service is of use.
const STUCK_AFTER: Duration = Duration::from_secs(10);

impl LimitArgs {
    /// Returns how images are decoded, `workers` at one time.
    pub(super) fn decode_options(&self, workers: NonZeroUsize) -> DecodeOptions {
        DecodeOptions {
            workers,
            timeout: *self.decode_timeout,
            limits: Limits {
                max_pixels: self.max_pixels,
                max_side: MAX_SIDE,
                max_decoded_bytes: self.max_decoded_bytes.as_u64(),
            },
            fast: self.fast_decode,
            isolation: if self.no_decode_sandbox {
                Isolation::None
            } else {
                Isolation::best()
            },
        }
    }

    /// Returns the options of the engine that runs `model`.
    pub(super) fn engine_options(&self, model: &ModelInfo) -> EngineOptions {
        let max_batch_size = self.max_batch_size(model);
        // Two batches for each pass: one runs while the next is being prepared.
        let queue_capacity = QUEUE_CAPACITY.max(2 * max_batch_size * model.passes);
        EngineOptions {
            max_concurrent_requests: self.max_concurrent_requests,
            queue_capacity: self.queue_capacity.unwrap_or(queue_capacity),
            max_batch_size,
            max_batch_delay: *self.max_batch_delay,
            stuck_after: STUCK_AFTER,
        }
    }

    /// Returns the largest batch: as asked for, or what suits the device.
    fn max_batch_size(&self, model: &ModelInfo) -> usize {
        let default = if model.accelerated {
            GPU_BATCH
        } else {
            CPU_BATCH
        };
        self.max_batch_size.unwrap_or(default)
    }
}
