//! The one dense product of a step, by the library that burn multiplies with. Which of its kernels is taken follows from the
//! precision and from what the device can do, not from timing, so that a run can be had again.

use anyhow::{Result, bail, ensure};
use artifact::config::GpuPrecision;
use cubecl::client::Client;
use cubecl::prelude::{Scalar, TensorBinding};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::Strategy;
use cubek::std::InputBinding;
use half::bf16;

use super::buffers::{Buffer, cubes_of_units, units};
use super::kernels::matrix;

/// The encoder's product at some precision.
pub(super) struct Product {
    precision: GpuPrecision,
    /// Kernels that may do it, the fastest first; those that declined are gone.
    strategies: Vec<Strategy>,
}

impl Product {
    /// Errors: the device cannot multiply at this precision.
    pub(super) fn new(client: &Client, precision: GpuPrecision) -> Result<Self> {
        let operand = match precision {
            GpuPrecision::F32 => f32::elem_type_native(),
            GpuPrecision::Tf32 => cubecl::prelude::tf32::elem_type_native(),
            GpuPrecision::Bf16 => bf16::elem_type_native(),
        };
        let matmul = &client.properties().features.matmul;
        let is_possible = precision == GpuPrecision::F32
            || matmul.cmma.iter().chain(&matmul.mma).any(|tile| tile.a_type == operand && tile.b_type == operand);
        ensure!(
            is_possible,
            "this GPU ({}) multiplies no {}; set train.gpu_precision: f32",
            client.properties().identity.name,
            name(precision)
        );
        let strategies = match precision {
            // On tensor cores f32 operands would be rounded to tf32.
            GpuPrecision::F32 => {
                vec![
                    Strategy::DoubleUnit(Default::default()),
                    Strategy::SimpleUnit(Default::default()),
                    Strategy::Naive,
                ]
            }
            GpuPrecision::Tf32 | GpuPrecision::Bf16 => vec![
                Strategy::DoubleCyclicMma(Default::default()),
                Strategy::DoubleCyclicCmma(Default::default()),
                Strategy::SimpleCyclicMma(Default::default()),
                Strategy::SimpleCyclicCmma(Default::default()),
            ],
        };
        Ok(Self { precision, strategies })
    }

    /// x · wᵀ, accumulated in f32. Shapes: x [n_rows, d], w [n_cols, d] → [n_rows, n_cols].
    /// Errors: no kernel takes matrices of these shapes.
    pub(super) fn run(
        &mut self,
        client: &Client,
        x: &Buffer<f32>,
        w: &Buffer<f32>,
        n_rows: usize,
        n_cols: usize,
        d: usize,
    ) -> Result<Buffer<f32>> {
        let out = Buffer::empty(client, n_rows * n_cols);
        let out_binding = binding(&out, [n_rows, n_cols], [n_cols, 1]);
        let (lhs, rhs, operand) = if self.precision == GpuPrecision::Bf16 {
            let (x, w) = (rounded(client, x, n_rows * d), rounded(client, w, n_cols * d));
            (binding(&x, [n_rows, d], [d, 1]), binding(&w, [d, n_cols], [1, d]), bf16::elem_type_native())
        } else {
            (binding(x, [n_rows, d], [d, 1]), binding(w, [d, n_cols], [1, d]), f32::elem_type_native())
        };
        let globals = MatmulGlobalElems { lhs: operand, rhs: operand, out: f32::elem_type_native() };
        let mut declined = String::new();
        while let Some(strategy) = self.strategies.first() {
            let launched = launch_ref(
                &strategy.clone().into(),
                client,
                InputBinding::new(lhs.clone(), operand),
                InputBinding::new(rhs.clone(), operand),
                out_binding.clone(),
                &mut MatmulElems::from_globals(&globals),
            );
            match launched {
                Ok(()) => return Ok(out),
                Err(error) => declined = format!("{error:?}"),
            }
            self.strategies.remove(0);
        }
        bail!(
            "no {} product of [{n_rows}, {d}] and [{d}, {n_cols}] on this GPU ({}); set train.gpu_precision: f32",
            name(self.precision),
            declined.lines().next().unwrap_or_default()
        )
    }
}

fn name(precision: GpuPrecision) -> &'static str {
    match precision {
        GpuPrecision::F32 => "f32",
        GpuPrecision::Tf32 => "tf32",
        GpuPrecision::Bf16 => "bf16",
    }
}

fn binding<T>(buffer: &Buffer<T>, shape: [usize; 2], strides: [usize; 2]) -> TensorBinding {
    // SAFETY: the callers' shapes are those that the buffers were made for.
    unsafe { TensorBinding::from_raw_parts(buffer.handle.clone(), strides.into(), shape.into()) }
}

fn rounded(client: &Client, values: &Buffer<f32>, n: usize) -> Buffer<bf16> {
    let out = Buffer::empty(client, n);
    // SAFETY: both hold at least n values, and no unit goes beyond.
    unsafe {
        matrix::round::launch_unchecked::<bf16>(client, cubes_of_units(n), units(), values.arg(), out.arg(), n);
    }
    out
}
