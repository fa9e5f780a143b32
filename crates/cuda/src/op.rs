//! What a GPU computes, as plain data.

use crate::driver::Buffer;

/// The type of activations and of the convolutions' weights. Sums are float32 with both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Half {
    /// IEEE 754's 16-bit floats: 11 bits of precision, up to 65504.
    F16,
    /// The upper half of 32-bit floats: 8 bits of precision, their whole range.
    BF16,
}

impl Half {
    /// The bytes of one number.
    pub const BYTES: usize = 2;
    /// Tensor cores take channels by this number: both channels of a convolution are multiples.
    pub const CHANNELS: usize = 8;
}

/// A piece of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// The allocation that holds it.
    pub buffer: Buffer,
    /// Where it begins, in bytes from the allocation's begin.
    pub offset: usize,
    /// How many bytes it has.
    pub bytes: usize,
}

impl Place {
    /// Returns the first `bytes` bytes of this place, or all of it where it has fewer.
    #[must_use]
    pub fn first(self, bytes: usize) -> Self {
        Self {
            bytes: bytes.min(self.bytes),
            ..self
        }
    }
}

/// The shape of a tensor of four dimensions as cuDNN takes it: sizes in the order N, C, H, W, and
/// for each of them the distance, in numbers, to the next element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor4 {
    /// Batch, channels, height and width.
    pub dims: [usize; 4],
    /// The distances along batch, channels, height and width.
    pub strides: [usize; 4],
}

impl Tensor4 {
    /// Returns the shape of a tensor whose channels lie next to each other (NHWC).
    #[must_use]
    pub fn channels_last(n: usize, c: usize, h: usize, w: usize) -> Self {
        Self {
            dims: [n, c, h, w],
            strides: [h * w * c, 1, w * c, c],
        }
    }

    /// Returns how many numbers the tensor has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether a dimension is zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A convolution with what is fused to it: `y = act(conv(x, w) + bias + z)`.
///
/// The filter is square, the weights are in the order K, R, S, C (output channel, row, column,
/// input channel), the bias is in the activations' type, and sums are float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Convolution {
    /// The type of x, w, z, bias and y.
    pub half: Half,
    /// The images of the batch.
    pub batch: usize,
    /// Height and width of x.
    pub size: (usize, usize),
    /// The channels of x, a multiple of [`Half::CHANNELS`].
    pub in_channels: usize,
    /// The channels of y, a multiple of [`Half::CHANNELS`].
    pub out_channels: usize,
    /// Height and width of the filter.
    pub kernel: usize,
    /// The stride in both directions.
    pub stride: usize,
    /// The zeros on each side.
    pub padding: usize,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// Whether `z` is added before the ReLU. Its shape is y's.
    pub residual: bool,
}

impl Convolution {
    /// Returns height and width of y.
    #[must_use]
    pub fn out_size(&self) -> (usize, usize) {
        let along = |size: usize| (size + 2 * self.padding - self.kernel) / self.stride + 1;
        (along(self.size.0), along(self.size.1))
    }

    /// Returns the shape of x.
    #[must_use]
    pub fn x(&self) -> Tensor4 {
        Tensor4::channels_last(self.batch, self.in_channels, self.size.0, self.size.1)
    }

    /// Returns the shape of y, which is z's too.
    #[must_use]
    pub fn y(&self) -> Tensor4 {
        let (height, width) = self.out_size();
        Tensor4::channels_last(self.batch, self.out_channels, height, width)
    }

    /// Returns the shape of the filter: K, C, R, S, with the channels next to each other.
    #[must_use]
    pub fn filter(&self) -> Tensor4 {
        Tensor4::channels_last(
            self.out_channels,
            self.in_channels,
            self.kernel,
            self.kernel,
        )
    }

    /// Returns the shape of the bias.
    #[must_use]
    pub fn bias(&self) -> Tensor4 {
        Tensor4::channels_last(1, self.out_channels, 1, 1)
    }
}

/// The normalisation of a byte, `byte * factor + addend` for each plane of the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pixels {
    /// One factor per plane, in the planes' order.
    pub factor: [f32; 3],
    /// One addend per plane, in the planes' order.
    pub addend: [f32; 3],
    /// Whether the network's planes are blue, green, red.
    pub reversed: bool,
}

/// One operation. Each reads and writes whole places, whose sizes follow from the numbers beside
/// them; a driver refuses a place that is smaller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// Normalises bytes, `[pixels, 3]` in the order red, green, blue, to half precision, `[pixels,
    /// 8]`, of which the last five are zeros.
    Pixels {
        /// The bytes.
        from: Place,
        /// The numbers.
        to: Place,
        /// How many pixels there are.
        pixels: usize,
        /// The type of the numbers.
        half: Half,
        /// The normalisation.
        normalisation: Pixels,
    },
    /// Brings normalised planes, float32 `[images, 3, area]`, to half precision, `[images, area,
    /// 8]`, of which the last five are zeros.
    Planes {
        /// The planes.
        from: Place,
        /// The numbers.
        to: Place,
        /// How many images there are.
        images: usize,
        /// The pixels of one image.
        area: usize,
        /// The type of the numbers.
        half: Half,
    },
    /// Runs a convolution.
    Convolution {
        /// Shapes, and what is fused.
        shape: Convolution,
        /// The input.
        x: Place,
        /// The weights, K, R, S, C.
        weights: Place,
        /// The bias.
        bias: Place,
        /// What is added, where `shape.residual` says so. It does not overlap `y`.
        z: Option<Place>,
        /// The output.
        y: Place,
        /// Memory for the time of the operation.
        workspace: Place,
    },
    /// Takes the largest of 3x3 numbers at a stride of 2, one row and column of padding on each
    /// side. The numbers are at least 0: the operation compares them as integers, which orders both
    /// types alike.
    MaxPool {
        /// The input.
        from: Place,
        /// The output.
        to: Place,
        /// The images of the batch.
        batch: usize,
        /// Height and width of the input.
        size: (usize, usize),
        /// The channels, a multiple of [`Half::CHANNELS`].
        channels: usize,
    },
    /// Takes the mean of each channel of each image: float32 `[batch, channels]`.
    AveragePool {
        /// The input.
        from: Place,
        /// The output.
        to: Place,
        /// The images of the batch.
        batch: usize,
        /// The pixels of one image.
        area: usize,
        /// The channels.
        channels: usize,
        /// The input's type.
        half: Half,
    },
    /// Runs the fully connected layer in float32, as `slices` partial sums and then their sum, so
    /// that a batch of one fills the GPU too. The order of summing does not vary.
    Linear {
        /// The input, `[batch, inputs]`.
        from: Place,
        /// The weights, `[inputs, outputs]`.
        weights: Place,
        /// The bias, `[outputs]`.
        bias: Place,
        /// Memory for the partial sums, `[slices, batch, outputs]`.
        partial: Place,
        /// The output, `[batch, outputs]`.
        to: Place,
        /// The images of the batch.
        batch: usize,
        /// The numbers that the layer reads.
        inputs: usize,
        /// The numbers that it returns.
        outputs: usize,
        /// Into how many slices the inputs are divided.
        slices: usize,
    },
}

impl Op {
    /// Returns each place with the bytes that the operation reads or writes there, and the
    /// operation's name. The convolution's workspace is the driver's own to check.
    #[must_use]
    pub fn places(&self) -> (&'static str, Vec<(Place, usize)>) {
        const FLOAT: usize = size_of::<f32>();
        match *self {
            Self::Pixels {
                from, to, pixels, ..
            } => (
                "pixels",
                vec![(from, 3 * pixels), (to, 8 * pixels * Half::BYTES)],
            ),
            Self::Planes {
                from,
                to,
                images,
                area,
                ..
            } => (
                "planes",
                vec![
                    (from, 3 * images * area * FLOAT),
                    (to, 8 * images * area * Half::BYTES),
                ],
            ),
            Self::Convolution {
                shape,
                x,
                weights,
                bias,
                z,
                y,
                ..
            } => {
                let bytes = |tensor: Tensor4| tensor.len() * Half::BYTES;
                let mut places = vec![
                    (x, bytes(shape.x())),
                    (weights, bytes(shape.filter())),
                    (bias, bytes(shape.bias())),
                    (y, bytes(shape.y())),
                ];
                places.extend(z.map(|z| (z, bytes(shape.y()))));
                ("convolution", places)
            }
            Self::MaxPool {
                from,
                to,
                batch,
                size,
                channels,
            } => {
                let (height, width) = max_pool_size(size);
                let bytes = |area: usize| batch * area * channels * Half::BYTES;
                (
                    "max-pool",
                    vec![(from, bytes(size.0 * size.1)), (to, bytes(height * width))],
                )
            }
            Self::AveragePool {
                from,
                to,
                batch,
                area,
                channels,
                ..
            } => (
                "average pool",
                vec![
                    (from, batch * area * channels * Half::BYTES),
                    (to, batch * channels * FLOAT),
                ],
            ),
            Self::Linear {
                from,
                weights,
                bias,
                partial,
                to,
                batch,
                inputs,
                outputs,
                slices,
            } => (
                "linear",
                vec![
                    (from, batch * inputs * FLOAT),
                    (weights, inputs * outputs * FLOAT),
                    (bias, outputs * FLOAT),
                    (partial, slices * batch * outputs * FLOAT),
                    (to, batch * outputs * FLOAT),
                ],
            ),
        }
    }
}

/// Returns height and width behind [`Op::MaxPool`].
#[must_use]
pub(crate) fn max_pool_size((height, width): (usize, usize)) -> (usize, usize) {
    ((height - 1) / 2 + 1, (width - 1) / 2 + 1)
}
