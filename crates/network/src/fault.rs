//! What a device's error means for the service: too little memory, a device that is gone, a binary
//! for other devices, or something else.
//!
//! Candle passes on the errors of CUDA's driver, cuBLAS, cuDNN and Metal in boxes of different
//! types, some of them as text alone. What they have in common is the name of the status in their
//! text. These names are part of those interfaces and do not change, so they are searched for.

use crate::error::NetworkError;

/// The statuses that say that the device has no memory left.
const OUT_OF_MEMORY: &[&str] = &[
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    // MTLCommandBufferErrorOutOfMemory, and candle's word where a Metal buffer is refused.
    "kIOGPUCommandBufferCallbackErrorOutOfMemory",
    "Failed to create metal resource",
];

/// The statuses after which "the process must be terminated and relaunched", in the words of CUDA's
/// driver API (<https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html>), or after
/// which the device is no longer there.
const LOST: &[&str] = &[
    "CUDA_ERROR_DEINITIALIZED",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    "CUDA_ERROR_SYSTEM_NOT_READY",
    "CUDA_ERROR_EXTERNAL_DEVICE",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    // MTLCommandBufferErrorDeviceRemoved and ...AccessRevoked.
    "kIOGPUCommandBufferCallbackErrorDeviceRemoved",
    "kIOGPUCommandBufferCallbackErrorSubmissionsIgnored",
];

/// The statuses that say that the binary's CUDA code is for newer GPUs than this one, or for a
/// newer driver.
const OTHER_GPU: &[&str] = &[
    "CUDA_ERROR_NO_BINARY_FOR_GPU",
    "CUDA_ERROR_INVALID_PTX",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
];

/// Returns the network's error for one of candle's.
pub(super) fn classify(error: candle_core::Error) -> NetworkError {
    classify_text(&error.to_string()).unwrap_or(NetworkError::Compute(error))
}

/// Returns the network's error for the text of a device's error, if a status in it says more than
/// that something failed.
pub(super) fn classify_text(text: &str) -> Option<NetworkError> {
    let names = |statuses: &[&str]| statuses.iter().any(|status| text.contains(status));
    // Candle appends a backtrace where one is asked for; what people want is the first line.
    let reason = || text.lines().next().unwrap_or_default().to_owned();
    if names(OUT_OF_MEMORY) {
        Some(NetworkError::OutOfDeviceMemory { reason: reason() })
    } else if names(LOST) {
        Some(NetworkError::DeviceLost { reason: reason() })
    } else if names(OTHER_GPU) {
        Some(NetworkError::OtherGpu { reason: reason() })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_status_says_whether_memory_or_the_device_is_gone() {
        use candle_core::Error;
        let boxed = |text: &str| Error::Cuda(text.into());
        let table = [
            (
                boxed("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"),
                "memory",
            ),
            (
                Error::wrap("CudnnError(CUDNN_STATUS_ALLOC_FAILED)"),
                "memory",
            ),
            (
                boxed("CublasError(CUBLAS_STATUS_ALLOC_FAILED)").context("in conv1"),
                "memory",
            ),
            (
                boxed("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"...\")"),
                "lost",
            ),
            (
                Error::msg("DriverError(CUDA_ERROR_ECC_UNCORRECTABLE)"),
                "lost",
            ),
            (
                Error::wrap("CudnnError(CUDNN_STATUS_EXECUTION_FAILED)"),
                "lost",
            ),
            (
                boxed("DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION)"),
                "built for another",
            ),
            (boxed("DriverError(CUDA_ERROR_INVALID_VALUE)"), "other"),
            (Error::msg("shape mismatch"), "other"),
        ];
        for (error, expected) in table {
            let shown = error.to_string();
            let found = match classify(error) {
                NetworkError::OutOfDeviceMemory { reason } => {
                    assert!(shown.contains(&reason), "{reason}");
                    "memory"
                }
                NetworkError::DeviceLost { .. } => "lost",
                NetworkError::OtherGpu { .. } => "built for another",
                _ => "other",
            };
            assert_eq!(found, expected, "{shown}");
        }
    }
}
