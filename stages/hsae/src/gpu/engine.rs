//! One SAE's parameters and moments on the device, where they stay between steps, and what a step launches.

use anyhow::{Result, ensure};
use artifact::config::{Sae, Train};
use cubecl::client::Client;

use super::Gpu;
use super::buffers::{Buffer, cubes, cubes_of_units, read_all, read_f32, to_f32, to_u32, units};
use super::dictionary::{Dictionary, Grads, Reconstruction, Size, add_grads, subtract, sum_rows};
use super::kernels::lists::NO_PARENT;
use super::kernels::{adam as rule, latents, matrix, tokens};
use super::lists::{self, Lists, Scores, Shape};
use super::product::Product;
use crate::adam::{Adam, Lengths};
use crate::kernels::Prefixes;
use crate::objective::AuxK;
use crate::schedule::Phase;
use crate::select::{Budget, Gate, Scope};
use crate::sparse::SparseRows;
use crate::weights::Weights;

/// Kernels count elements in 32 bits.
const MOST_ELEMENTS: usize = u32::MAX as usize;

pub(crate) struct Engine {
    client: Client,
    product: Product,
    d_model: usize,
    d_sae: usize,
    n_coarse: usize,
    /// W_enc, b_enc, W_dec; then b_dec.
    weights: Dictionary,
    b_dec: Buffer<f32>,
    first: [Buffer<f32>; 4],
    second: [Buffer<f32>; 4],
    grads: Grads,
    is_constrained: bool,
    /// b_dec is taken from the encoder's input.
    centers_input: bool,
}

/// What a step is to do.
pub(crate) struct Plan<'a> {
    pub(crate) phase: &'a Phase,
    pub(crate) prefixes: &'a Prefixes,
    pub(crate) gate: Option<Gate<'a>>,
    /// Latents that take part, the first ones.
    pub(crate) n_in_use: usize,
    /// AuxK may follow.
    pub(crate) wants_residual: bool,
}

/// A step that has been launched, and what it left on the device.
pub(crate) struct Pass {
    size: Size,
    /// The encoder's input.
    x: Buffer<f32>,
    /// ‖x − b_dec‖² of every token, and the sum of x − b_dec.
    squares: Buffer<f32>,
    sums: Buffer<f32>,
    lists: Lists,
    ungated: Option<Lists>,
    reconstruction: Reconstruction,
    n_prefixes: usize,
    aux: Option<AuxPass>,
    norm_and_clip: Option<Buffer<f32>>,
}

struct AuxPass {
    /// ‖e − ê‖² of every token.
    errors: Buffer<f32>,
    weight: f64,
}

/// What a step found, in numbers.
pub(crate) struct Found {
    /// Mean over tokens of ‖x − x̂_m‖², one per prefix.
    pub(crate) errors: Vec<f64>,
    /// Weighted.
    pub(crate) aux: f64,
    /// Σ ‖x − mean(x)‖² over the batch.
    pub(crate) total_variance: f64,
    pub(crate) firings: Vec<u64>,
    pub(crate) sum_acts: f64,
    /// Before clipping.
    pub(crate) grad_norm: f32,
}

impl Engine {
    /// Errors: the device does not have the precision, or the sizes are beyond the kernels'.
    pub(crate) fn new(gpu: &Gpu, sae: &Sae, train: &Train, weights: &Weights, adam: &Adam) -> Result<Self> {
        let client = gpu.client().clone();
        let (d_model, d_sae) = (weights.d_model, weights.d_sae);
        let product = Product::new(&client, train.gpu_precision)?;
        for (name, n) in [("train.batch_size", train.batch_size), ("d_model", d_model)] {
            ensure!(
                n.saturating_mul(d_sae) <= MOST_ELEMENTS,
                "{}: {name} × d_sae = {n} × {d_sae} exceeds the 2³² elements that a GPU kernel counts; lower one of them, \
                 or set device: cpu",
                sae.name
            );
        }
        let upload = |of: &Weights| [&of.w_enc, &of.b_enc, &of.w_dec, &of.b_dec].map(|v| Buffer::new(&client, v));
        let [w_enc, b_enc, w_dec, b_dec] = upload(weights);
        Ok(Self {
            product,
            d_model,
            d_sae,
            n_coarse: sae.n_coarse,
            weights: Dictionary { w_enc, b_enc, w_dec },
            b_dec,
            first: upload(&adam.first),
            second: upload(&adam.second),
            grads: Grads::zeros(&client, d_sae, d_model),
            is_constrained: adam.lengths == Lengths::UnitAfter,
            centers_input: sae.apply_b_dec_to_input,
            client,
        })
    }

    /// Brings parameters and moments back.
    pub(crate) fn download(&self, weights: &mut Weights, adam: &mut Adam) -> Result<()> {
        let on_device = [&self.weights.w_enc, &self.weights.b_enc, &self.weights.w_dec, &self.b_dec];
        let of = [on_device, self.first.each_ref(), self.second.each_ref()];
        for (buffers, to) in of.into_iter().zip([weights, &mut adam.first, &mut adam.second]) {
            let values = [&mut to.w_enc, &mut to.b_enc, &mut to.w_dec, &mut to.b_dec];
            for (buffer, values) in buffers.into_iter().zip(values) {
                *values = read_f32(&self.client, buffer)?;
            }
        }
        Ok(())
    }

    /// Launches selection, reconstructions and gradients. Shapes: x [B, d_model].
    pub(crate) fn pass(&mut self, x: Vec<f32>, plan: &Plan) -> Result<Pass> {
        let client = &self.client;
        let size = Size { n_rows: x.len() / self.d_model, d_model: self.d_model };
        let centered = Buffer::empty(client, x.len());
        let raw = Buffer::of(client, x);
        let squares = Buffer::empty(client, size.n_rows);
        // SAFETY: buffers are as large as the shapes say.
        unsafe {
            tokens::center::launch_unchecked(
                client,
                cubes(size.n_rows),
                units(),
                raw.arg(),
                self.b_dec.arg(),
                centered.arg(),
                squares.arg(),
                size.n_rows,
                size.d_model,
            );
        }
        let sums = sum_rows(client, &centered, None, size.n_rows, size.d_model);
        let x = if self.centers_input { centered.clone() } else { raw };

        let shape = Shape { n_rows: size.n_rows, n_cols: plan.n_in_use };
        let product = self.product.run(client, &x, &self.weights.w_enc, size.n_rows, plan.n_in_use, size.d_model)?;
        let scores = Scores { values: &product, b_enc: &self.weights.b_enc, shape };
        let (lists, ungated) = select(client, &scores, plan);
        let acts = self.weights.acts(client, &x, &lists, size);
        let reconstruction =
            self.weights.reconstruct(client, &centered, &lists, &acts, plan.prefixes, plan.wants_residual, size);
        let columns = lists.columns(client);
        let grads = &self.grads;
        let n_in_use = plan.n_in_use;
        self.weights.gradients(client, &x, &lists, &columns, &acts, &reconstruction, n_in_use, size, grads);
        let n_prefixes = plan.prefixes.len();
        Ok(Pass { size, x, squares, sums, lists, ungated, reconstruction, n_prefixes, aux: None, norm_and_clip: None })
    }

    /// Tokens on which each latent was active, [d_sae]: waits for the pass.
    pub(crate) fn firings(&self) -> Result<Vec<u64>> {
        let [bytes] = read_all(&self.client, [&self.grads.firings.handle])?;
        Ok(to_u32(&bytes, self.d_sae).into_iter().map(u64::from).collect())
    }

    /// The active lists without the gate, from which the tree learns: waits for the pass. Values are not brought back.
    pub(crate) fn firing_lists(&self, pass: &Pass) -> Result<SparseRows> {
        let lists = pass.ungated.as_ref().unwrap_or(&pass.lists);
        let [row_ptr, idx] = read_all(&self.client, [&lists.row_ptr.handle, &lists.idx.handle])?;
        let indptr: Vec<usize> = to_u32(&row_ptr, pass.size.n_rows + 1).into_iter().map(|at| at as usize).collect();
        let nnz = indptr.last().copied().unwrap_or_default();
        let idx = to_u32(&idx, nnz);
        ensure!(indptr.is_sorted() && idx.len() == nnz, "the GPU gave back lists that are none");
        Ok(SparseRows { n_cols: self.d_sae, indptr, vals: vec![0.0; nnz], idx })
    }

    /// Launches AuxK and adds its gradients. Gao et al. 2024, appendix A.2.
    pub(crate) fn aux_k(&mut self, pass: &mut Pass, aux: AuxK) -> Result<()> {
        let client = &self.client;
        let Size { n_rows, d_model } = pass.size;
        let n_dead = aux.dead.len();
        let residual = &pass.reconstruction.residual;
        let mut weight = aux.weight;
        if aux.is_normalised {
            let sums = sum_rows(client, residual, None, n_rows, d_model);
            let [sums, errors] = read_all(client, [&sums.handle, &pass.reconstruction.errors.handle])?;
            let errors = to_f32(&errors, pass.n_prefixes * n_rows);
            let last = &errors[(pass.n_prefixes - 1) * n_rows..];
            weight /= variance(last, &to_f32(&sums, d_model)) / n_rows as f64;
        }
        let dead = self.weights.of(client, aux.dead, d_model);
        let product = self.product.run(client, &pass.x, &dead.w_enc, n_rows, n_dead, d_model)?;
        let shape = Shape { n_rows, n_cols: n_dead };
        let scores = Scores { values: &product, b_enc: &dead.b_enc, shape };
        let k = aux.k as f64;
        let lists = lists::select(client, &scores, &Budget::Shared { k, fine: k, n_coarse: 0 }, Scope::Token);
        let acts = dead.acts(client, &pass.x, &lists, pass.size);
        let whole = Prefixes::nested(vec![n_dead], vec![weight as f32]);
        let reconstruction = dead.reconstruct(client, residual, &lists, &acts, &whole, false, pass.size);
        let columns = lists.columns(client);
        // Every row of them is written.
        let grads = Grads::empty(client, n_dead, d_model);
        dead.gradients(client, &pass.x, &lists, &columns, &acts, &reconstruction, n_dead, pass.size, &grads);
        add_grads(client, &self.grads, &grads, aux.dead, d_model);
        pass.aux = Some(AuxPass { errors: reconstruction.errors, weight });
        Ok(())
    }

    /// Launches Adam on all parameters. `adam` holds decays and the count of steps, not moments.
    pub(crate) fn update(&mut self, pass: &mut Pass, adam: &mut Adam, phase: &Phase) {
        let client = &self.client;
        let (d_model, d_sae, n_coarse) = (self.d_model, self.d_sae, self.n_coarse);
        // b_dec is part of every prefix, so it receives what the first one does; and what goes through the input.
        let grad_b_dec = sum_rows(client, &pass.reconstruction.flow, None, pass.size.n_rows, d_model);
        if self.centers_input {
            let through = sum_rows(client, &self.weights.w_enc, Some(&self.grads.b_enc), d_sae, d_model);
            subtract(client, &grad_b_dec, &through, d_model);
        }
        adam.step += 1;
        let numbers = Buffer::new(client, &numbers(adam, phase));
        let (along, squares) = (Buffer::<f32>::empty(client, d_sae), Buffer::<f32>::empty(client, d_sae));
        let norm_and_clip = Buffer::empty(client, 2);
        let (grads, is_constrained) = (&self.grads, self.is_constrained);
        // SAFETY: parameters, moments and gradients have the shapes of the parameters.
        unsafe {
            latents::measure::launch_unchecked(
                client,
                cubes(d_sae),
                units(),
                grads.w_enc.arg(),
                grads.w_dec.arg(),
                grads.b_enc.arg(),
                self.weights.w_dec.arg(),
                along.arg(),
                squares.arg(),
                d_sae,
                d_model,
                is_constrained,
            );
            rule::clip::launch_unchecked(
                client,
                cubes(1),
                units(),
                squares.arg(),
                grad_b_dec.arg(),
                norm_and_clip.arg(),
                d_sae,
                d_model,
                adam.max_grad_norm,
            );
            let matrices =
                [(&self.weights.w_enc, 0, &grads.w_enc, false), (&self.weights.w_dec, 2, &grads.w_dec, is_constrained)];
            for (w, i, grad, is_constrained) in matrices {
                rule::update_rows::launch_unchecked(
                    client,
                    cubes(d_sae),
                    units(),
                    w.arg(),
                    self.first[i].arg(),
                    self.second[i].arg(),
                    grad.arg(),
                    along.arg(),
                    norm_and_clip.arg(),
                    numbers.arg(),
                    n_coarse,
                    d_sae,
                    d_model,
                    is_constrained,
                );
            }
            let vectors =
                [(&self.weights.b_enc, 1, &grads.b_enc, d_sae, true), (&self.b_dec, 3, &grad_b_dec, d_model, false)];
            for (w, i, grad, n, is_by_level) in vectors {
                rule::update_vector::launch_unchecked(
                    client,
                    cubes_of_units(n),
                    units(),
                    w.arg(),
                    self.first[i].arg(),
                    self.second[i].arg(),
                    grad.arg(),
                    norm_and_clip.arg(),
                    numbers.arg(),
                    n_coarse,
                    n,
                    is_by_level,
                );
            }
        }
        pass.norm_and_clip = Some(norm_and_clip);
    }

    /// Waits for the step and says what it found.
    pub(crate) fn found(&self, pass: &Pass) -> Result<Found> {
        let n_rows = pass.size.n_rows;
        let none = Buffer::new(&self.client, &[0f32, 1.0]);
        let (errors, grads) = (&pass.reconstruction.errors, &self.grads);
        let aux_errors = pass.aux.as_ref().map_or(&none, |aux| &aux.errors);
        let norm = pass.norm_and_clip.as_ref().unwrap_or(&none);
        let handles = [errors, &pass.squares, &pass.sums, aux_errors, norm, &grads.act_sums].map(|b| &b.handle);
        let [errors, squares, sums, aux_errors, norm, act_sums] = handles;
        let read = [errors, squares, sums, aux_errors, norm, act_sums, &grads.firings.handle];
        let [errors, squares, sums, aux_errors, norm, act_sums, firings] = read_all(&self.client, read)?;
        let mean = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>() / n_rows as f64;
        let errors = to_f32(&errors, pass.n_prefixes * n_rows);
        Ok(Found {
            errors: errors.chunks_exact(n_rows).map(mean).collect(),
            aux: pass.aux.as_ref().map_or(0.0, |aux| aux.weight * mean(&to_f32(&aux_errors, n_rows))),
            total_variance: variance(&to_f32(&squares, n_rows), &to_f32(&sums, self.d_model)),
            firings: to_u32(&firings, self.d_sae).into_iter().map(u64::from).collect(),
            sum_acts: to_f32(&act_sums, self.d_sae).into_iter().map(f64::from).sum(),
            grad_norm: to_f32(&norm, 2)[0],
        })
    }
}

/// The active lists, and those without the gate where there is one.
fn select(client: &Client, scores: &Scores, plan: &Plan) -> (Lists, Option<Lists>) {
    let (budget, scope) = (&plan.phase.budget, plan.phase.scope);
    let Some(gate) = plan.gate else { return (lists::select(client, scores, budget, scope), None) };
    let parents: Vec<u32> = gate.parent.iter().map(|parent| parent.unwrap_or(NO_PARENT)).collect();
    let parents = Buffer::of(client, parents);
    let ungated = if lists::alters_scores(budget) {
        let copy = copied(client, scores.values);
        lists::select(client, &Scores { values: &copy, ..*scores }, budget, scope)
    } else {
        lists::select(client, scores, budget, scope)
    };
    lists::gate(client, scores, &ungated, &parents, gate.strength);
    (lists::select(client, scores, budget, scope), Some(ungated))
}

fn copied(client: &Client, values: &Buffer<f32>) -> Buffer<f32> {
    let copy = Buffer::empty(client, values.len);
    // SAFETY: both are as long.
    unsafe {
        let n = values.len;
        matrix::round::launch_unchecked::<f32>(client, cubes_of_units(n), units(), values.arg(), copy.arg(), n);
    }
    copy
}

/// Σ ‖x − mean(x)‖² of rows, from their squares [n] and their sum [d].
fn variance(squares: &[f32], sums: &[f32]) -> f64 {
    let square = |value: &f32| f64::from(*value).powi(2);
    let total: f64 = squares.iter().map(|&square| f64::from(square)).sum();
    total - sums.iter().map(square).sum::<f64>() / squares.len() as f64
}

/// The buffer of `rule::N_NUMBERS`.
fn numbers(adam: &Adam, phase: &Phase) -> [f32; rule::N_NUMBERS] {
    let correction = |beta: f32| (1.0 - f64::from(beta).powf(adam.step as f64)) as f32;
    let mut numbers = [0.0; rule::N_NUMBERS];
    numbers[rule::LR_COARSE] = phase.lr_coarse as f32;
    numbers[rule::LR_FINE] = phase.lr_fine as f32;
    numbers[rule::LR] = phase.lr as f32;
    numbers[rule::BETA1] = adam.beta1;
    numbers[rule::BETA2] = adam.beta2;
    numbers[rule::FIRST_SCALE] = 1.0 / correction(adam.beta1);
    numbers[rule::SECOND_SCALE] = 1.0 / correction(adam.beta2).sqrt();
    numbers
}
