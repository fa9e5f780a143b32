//! The macros that compile the generic kernels for an instruction set.

/// Compiles the micro-kernels of products for operands of one type and results of one type, where a
/// tile is `$vectors` vectors wide and up to as many pixels tall as the last of `$rows` says. Its
/// accumulators (`$vectors` times that number), `$vectors` vectors of weights and a broadcast word
/// must fit the registers.
macro_rules! tile_kernels {
    (
        $name:ident, $module:ident, $(#[$feature:meta])?,
        $operands:ty, $stored:ty, $vectors:literal, [$($rows:literal)+]
    ) => {
        mod $module {
            use super::*;
            /// # Safety
            /// As [`tile::dense`].
            $(#[$feature])?
            pub(super) unsafe fn dense<const MR: usize>(t: &Tile) {
                // SAFETY: the tile is as `tile::dense` asks for, and this function enables the
                // operands' features.
                unsafe { tile::dense::<$operands, $stored, MR, $vectors>(t) }
            }
            /// # Safety
            /// As [`tile::indirect`].
            $(#[$feature])?
            pub(super) unsafe fn indirect<const MR: usize>(t: &Tile) {
                // SAFETY: the tile is as `tile::indirect` asks for, and this function enables the
                // operands' features.
                unsafe { tile::indirect::<$operands, $stored, MR, $vectors>(t) }
            }
        }
        pub(super) static $name: TileKernels = TileKernels {
            width: $vectors * <<$operands as number::Operands>::Floats as simd::Vector>::LANES,
            stored: <$stored as Stored>::NUMBERS,
            pixel_offset: <$operands as number::Operands>::PIXEL_OFFSET,
            dense: &[$($module::dense::<$rows>),+],
            indirect: &[$($module::indirect::<$rows>),+],
        };
    };
}

/// Compiles the kernels of the stem, with tiles as [`tile_kernels`] has them. `by lane` takes those
/// of [`crate::stem::tile::tile_by_lane`].
macro_rules! stem_kernels {
    (
        $name:ident, $module:ident, $(#[$feature:meta])?,
        $operands:ty, $stored:ty, $vectors:literal, $rows:tt
    ) => {
        stem_kernels!(
            @ $name, $module, $(#[$feature])?, $operands, $stored, $vectors, $rows,
            tile, $operands
        );
    };
    (
        $name:ident, $module:ident, $(#[$feature:meta])?,
        $operands:ty, $stored:ty, $vectors:literal, $rows:tt, by lane
    ) => {
        stem_kernels!(
            @ $name, $module, $(#[$feature])?, $operands, $stored, $vectors, $rows,
            tile_by_lane, <$operands as number::Operands>::Floats
        );
    };
    (
        @ $name:ident, $module:ident, $(#[$feature:meta])?,
        $operands:ty, $stored:ty, $vectors:literal, [$($rows:literal)+], $tile:ident, $of:ty
    ) => {
        mod $module {
            use super::*;
            /// # Safety
            /// As [`crate::stem::tile::tile`].
            $(#[$feature])?
            pub(super) unsafe fn tile<const MR: usize>(t: &StemTile) {
                // SAFETY: the tile is as `stem::tile::tile` asks for, and this function enables the
                // operands' features.
                unsafe { crate::stem::tile::$tile::<$of, MR, $vectors>(t) }
            }
            /// # Safety
            /// As [`crate::stem::pool::max_pool`].
            $(#[$feature])?
            pub(super) unsafe fn max_pool(row: &PoolRow) {
                // SAFETY: the row is as `stem::pool::max_pool` asks for, and this function enables the
                // operands' features.
                unsafe {
                    crate::stem::pool::max_pool::<<$operands as number::Operands>::Floats, $stored>(row)
                }
            }
        }
        pub(super) static $name: StemKernels = StemKernels {
            width: $vectors * <<$operands as number::Operands>::Floats as simd::Vector>::LANES,
            stored: <$stored as Stored>::NUMBERS,
            pixel_offset: <$operands as number::Operands>::PIXEL_OFFSET,
            tiles: &[$($module::tile::<$rows>),+],
            max_pool: $module::max_pool,
        };
    };
}

/// Compiles Winograd's transforms of activations of one type, with products of another.
macro_rules! winograd_kernels {
    (
        $name:ident, $module:ident, $(#[$feature:meta])?,
        $vector:ty, $activations:ty, $factors:ty
    ) => {
        mod $module {
            use super::*;
            /// # Safety
            /// As [`transform::input`].
            $(#[$feature])?
            pub(super) unsafe fn input<const S: usize, const Y: bool, const X: bool>(t: &InputTile) {
                // SAFETY: the tile is as `transform::input` asks for, and this function enables the
                // vector's features.
                unsafe { transform::input::<$vector, $activations, $factors, S, Y, X>(t) }
            }
            /// # Safety
            /// As [`transform::output`].
            $(#[$feature])?
            pub(super) unsafe fn output<const S: usize, const M: usize, const Y: bool, const X: bool>(
                t: &OutputTile,
            ) {
                // SAFETY: the tile is as `transform::output` asks for, and this function enables
                // the vector's features.
                unsafe { transform::output::<$vector, $activations, S, M, Y, X>(t) }
            }
        }
        pub(super) static $name: WinogradKernels = WinogradKernels {
            activations: <$activations as Stored>::NUMBERS,
            factors: <$factors as Stored>::NUMBERS,
            input: [
                [
                    $module::input::<4, false, false>,
                    $module::input::<4, false, true>,
                    $module::input::<4, true, false>,
                    $module::input::<4, true, true>,
                ],
                [
                    $module::input::<6, false, false>,
                    $module::input::<6, false, true>,
                    $module::input::<6, true, false>,
                    $module::input::<6, true, true>,
                ],
            ],
            output: [
                [
                    $module::output::<4, 2, false, false>,
                    $module::output::<4, 2, false, true>,
                    $module::output::<4, 2, true, false>,
                    $module::output::<4, 2, true, true>,
                ],
                [
                    $module::output::<6, 4, false, false>,
                    $module::output::<6, 4, false, true>,
                    $module::output::<6, 4, true, false>,
                    $module::output::<6, 4, true, true>,
                ],
            ],
        };
    };
}

/// Compiles the other kernels for one instruction set.
macro_rules! kernels {
    ($name:ident, $module:ident, $(#[$feature:meta])?, $vector:ty, $across:path) => {
        mod $module {
            use super::*;
            /// # Safety
            /// The processor has the target features.
            $(#[$feature])?
            pub(super) unsafe fn chains() -> (f32, u64) {
                // SAFETY: this function enables the vector's features, and its caller vouches for
                // their presence.
                unsafe { crate::peak::chains::<$vector>() }
            }
            $(#[$feature])?
            #[allow(
                clippy::missing_safety_doc,
                reason = "clippy takes a safe function with target features for an unsafe one"
            )]
            pub(super) fn down(
                samples: &[u8],
                row_bytes: usize,
                rows: &[resample::Taps],
                out: &mut [u8],
            ) {
                resample::down(samples, row_bytes, rows, out);
            }
        }
        pub(super) static $name: Kernels = Kernels {
            chains: $module::chains,
            across: $across,
            down: $module::down,
        };
    };
}
