//! The one dense product of a step, by the library that burn multiplies with. Which of its kernels is taken follows from the
//! precision, from what the device can do and from the shapes, not from timing nor from what was multiplied before, so that
//! a run can be had again.

use anyhow::{Error, Result, anyhow, ensure};
use artifact::config::GpuPrecision;
use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::{Scalar, TensorBinding};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::Strategy;
use cubek::std::InputBinding;
use half::bf16;

use super::buffers::{Buffer, cubes_of_units, read_f32, units};
use super::device::quietly;
use super::kernels::matrix;

/// Rows of both operands, and their width, of the product that a kernel has to get right before it is taken.
const TRIAL: (usize, usize) = (256, 256);

/// The encoder's product at some precision.
pub(super) struct Product {
    precision: GpuPrecision,
    /// Kernels that do it on this device, the fastest first. Shapes that one declines are left to the next.
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
        let mut reason = anyhow!("no kernel was tried");
        let mut those_that_work = Vec::new();
        let trial = Trial::new();
        for strategy in strategies {
            match quietly(|| trial.run(client, precision, &strategy)) {
                Ok(()) => those_that_work.push(strategy),
                Err(error) => reason = error,
            }
        }
        ensure!(
            !those_that_work.is_empty(),
            "this GPU ({}) multiplies no {}: {}; {}",
            client.properties().identity.name,
            name(precision),
            first_line(&reason),
            instead_of(precision)
        );
        Ok(Self { precision, strategies: those_that_work })
    }

    /// x · wᵀ, accumulated in f32. Shapes: x [n_rows, d], w [n_cols, d] → [n_rows, n_cols].
    /// Errors: no kernel takes matrices of these shapes.
    pub(super) fn run(
        &self,
        client: &Client,
        x: &Buffer<f32>,
        w: &Buffer<f32>,
        n_rows: usize,
        n_cols: usize,
        d: usize,
    ) -> Result<Buffer<f32>> {
        let operands = Operands::new(client, self.precision, x, w, [n_rows, n_cols, d]);
        let mut reason = anyhow!("no kernel was tried");
        for strategy in &self.strategies {
            match operands.product(client, strategy) {
                Ok(out) => return Ok(out),
                Err(error) => reason = error,
            }
        }
        Err(anyhow!(
            "no {} product of [{n_rows}, {d}] and [{d}, {n_cols}] on this GPU ({}); {}",
            name(self.precision),
            first_line(&reason),
            instead_of(self.precision)
        ))
    }
}

/// Two matrices as the kernels of some precision take them.
struct Operands {
    lhs: TensorBinding,
    rhs: TensorBinding,
    elem: ElemType,
    n_rows: usize,
    n_cols: usize,
}

impl Operands {
    /// Shapes: [n_rows, n_cols, d] of x [n_rows, d], w [n_cols, d].
    fn new(
        client: &Client,
        precision: GpuPrecision,
        x: &Buffer<f32>,
        w: &Buffer<f32>,
        [n_rows, n_cols, d]: [usize; 3],
    ) -> Self {
        let (lhs, rhs, elem) = if precision == GpuPrecision::Bf16 {
            let (x, w) = (rounded(client, x, n_rows * d), rounded(client, w, n_cols * d));
            (binding(&x, [n_rows, d], [d, 1]), binding(&w, [d, n_cols], [1, d]), bf16::elem_type_native())
        } else {
            (binding(x, [n_rows, d], [d, 1]), binding(w, [d, n_cols], [1, d]), f32::elem_type_native())
        };
        Self { lhs, rhs, elem, n_rows, n_cols }
    }

    /// Errors: the kernel does not take these.
    fn product(&self, client: &Client, strategy: &Strategy) -> Result<Buffer<f32>> {
        let out = Buffer::empty(client, self.n_rows * self.n_cols);
        let globals = MatmulGlobalElems { lhs: self.elem, rhs: self.elem, out: f32::elem_type_native() };
        launch_ref(
            &strategy.clone().into(),
            client,
            InputBinding::new(self.lhs.clone(), self.elem),
            InputBinding::new(self.rhs.clone(), self.elem),
            binding(&out, [self.n_rows, self.n_cols], [self.n_cols, 1]),
            &mut MatmulElems::from_globals(&globals),
        )
        .map_err(|error| anyhow!("{error:?}"))?;
        Ok(out)
    }
}

/// A small product of which the result is known.
struct Trial {
    x: Vec<f32>,
    w: Vec<f32>,
    expected: Vec<f64>,
}

impl Trial {
    fn new() -> Self {
        let (n, d) = TRIAL;
        // In [−1, 1), without a period that a tile has.
        let values = |factor: usize| -> Vec<f32> {
            (0..n * d).map(|i| ((i + 1) * factor % 1009) as f32 / 504.5 - 1.0).collect()
        };
        let (x, w) = (values(389), values(631));
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        let expected = x.chunks_exact(d).flat_map(|x| w.chunks_exact(d).map(move |w| dot(x, w))).collect();
        Self { x, w, expected }
    }

    /// Errors: the kernel does not run on this device, or gets it wrong.
    fn run(&self, client: &Client, precision: GpuPrecision, strategy: &Strategy) -> Result<()> {
        let (n, d) = TRIAL;
        let (x, w) = (Buffer::new(client, &self.x), Buffer::new(client, &self.w));
        let out = Operands::new(client, precision, &x, &w, [n, n, d]).product(client, strategy)?;
        let found = read_f32(client, &out)?;
        let largest = self.expected.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        let tolerance = tolerance(precision) * largest;
        let is_close = |(&found, &expected): (&f32, &f64)| (f64::from(found) - expected).abs() <= tolerance;
        ensure!(found.iter().zip(&self.expected).all(is_close), "a kernel gets a product wrong");
        Ok(())
    }
}

/// Of the largest value of a product.
fn tolerance(precision: GpuPrecision) -> f64 {
    match precision {
        GpuPrecision::F32 => 1e-5,
        GpuPrecision::Tf32 => 2e-3,
        GpuPrecision::Bf16 => 2e-2,
    }
}

fn instead_of(precision: GpuPrecision) -> &'static str {
    match precision {
        GpuPrecision::F32 => "set device: cpu",
        GpuPrecision::Tf32 | GpuPrecision::Bf16 => "set train.gpu_precision: f32",
    }
}

fn first_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
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
