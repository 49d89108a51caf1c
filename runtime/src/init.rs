//! First values of persistent tensors.

use crate::backend::Backend;
use crate::cpu::rows::philox;
use crate::error::{Error, Result};
use crate::tensors::WeightSource;
use precast_plan::words::difference;
use precast_plan::{Init, Kind, Plan, Storage, Tensor, TensorId};

/// Writes the first value of every persistent tensor of `plan` to `backend`.
///
/// # Errors
/// If the weights lack a tensor, or one has another shape: the message names both sides.
pub fn initialise(
    plan: &Plan,
    weights: &dyn WeightSource,
    backend: &mut dyn Backend,
) -> Result<()> {
    let mut copies = vec![];
    let mut bytes = vec![];
    for (id, t) in plan.tensors.iter().enumerate() {
        let Storage::Persistent { init, .. } = &t.storage else { continue };
        if original(init).is_some() {
            copies.push(id as u32);
            continue;
        }
        bytes.clear();
        value(t, init, weights, &mut bytes).map_err(|e| e.at(format!("tensor `{}`", t.name)))?;
        backend.write(id as u32, &bytes)?;
    }
    for id in copies {
        copy(plan, backend, id)?;
    }
    Ok(())
}

/// The tensor that another one begins as a copy of.
pub(crate) fn original(init: &Init) -> Option<TensorId> {
    match init {
        Init::CopyOf(from) | Init::ChannelsLastOf(from) => Some(*from),
        _ => None,
    }
}

/// Writes the value of the tensor that `to` begins as a copy of to it, in its format and order.
///
/// # Errors
/// If the device failed.
///
/// # Panics
/// If it is no copy.
pub(crate) fn copy(plan: &Plan, backend: &mut dyn Backend, to: TensorId) -> Result<()> {
    let target = &plan.tensors[to as usize];
    let Storage::Persistent { init, .. } = &target.storage else {
        panic!("`{}` does not outlive a step", target.name)
    };
    let from = original(init).unwrap_or_else(|| panic!("`{}` is no copy", target.name));
    let source = &plan.tensors[from as usize];
    let n: usize = source.shape.iter().product::<u64>() as usize;
    let mut raw = vec![0; n * source.dtype.size()];
    backend.read(from, &mut raw)?;
    let host = crate::tensors::HostTensor {
        element: crate::tensors::Element::Plan(source.dtype),
        shape: source.shape.clone(),
        bytes: raw.into(),
    };
    let mut bytes = vec![];
    host.convert(0..n, target.dtype, (1.0, 0.0), &mut bytes)
        .map_err(|e| e.at(format!("tensor `{}`", target.name)))?;
    if let (Init::ChannelsLastOf(_), &[o, c, h, w]) = (init, &source.shape[..]) {
        bytes = channels_last(&bytes, [o, c, h * w].map(|n| n as usize), target.dtype.size());
    }
    backend.write(to, &bytes)
}

/// Elements [o,c,p] as [o,p,c].
fn channels_last(bytes: &[u8], [o, c, p]: [usize; 3], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for i in 0..o {
        for k in 0..p {
            for j in 0..c {
                let at = ((i * c + j) * p + k) * size;
                out.extend_from_slice(&bytes[at..at + size]);
            }
        }
    }
    out
}

fn value(t: &Tensor, init: &Init, weights: &dyn WeightSource, out: &mut Vec<u8>) -> Result<()> {
    let n = t.shape.iter().product::<u64>() as usize;
    let real = |out: &mut Vec<u8>, x: f32| {
        out.extend_from_slice(&t.dtype.encode(x).to_le_bytes()[..t.dtype.size()]);
    };
    match init {
        Init::Zeros => out.resize(n * t.dtype.size(), 0),
        Init::Value(x) => match t.dtype.kind() {
            Kind::Real => (0..n).for_each(|_| real(out, *x as f32)),
            Kind::Int | Kind::Bool => {
                let word = (*x as i64).to_le_bytes();
                (0..n).for_each(|_| out.extend_from_slice(&word[..t.dtype.size()]));
            }
        },
        Init::Weights(name) => {
            let found = weights.get(name)?.ok_or_else(|| missing(name, weights))?;
            if found.shape != t.shape {
                let text = format!(
                    "`{name}` has shape {:?}, the model expects {:?}: {}",
                    found.shape,
                    t.shape,
                    difference((&found.shape[..], "in the file"), (&t.shape[..], "in the model"))
                );
                return Err(Error::new("R0302", text).at(weights.describe()).help(
                    "give the weights of this model, or compile the model that they are of",
                ));
            }
            let place = || format!("{}: tensor `{name}`", weights.describe());
            found.convert(0..n, t.dtype, (1.0, 0.0), out).map_err(|e| e.at(place()))?;
        }
        Init::File { path, offset, dtype } => {
            let bytes = weights.part(path, *offset, (n * dtype.size()) as u64)?;
            let element = crate::tensors::Element::Plan(*dtype);
            let host = crate::tensors::HostTensor { element, shape: t.shape.clone(), bytes };
            let place = || format!("{path}: tensor `{}`", t.name);
            host.convert(0..n, t.dtype, (1.0, 0.0), out).map_err(|e| e.at(place()))?;
        }
        Init::Uniform { bound, seed, stream } => {
            for i in 0..n {
                let w = draw(i as u64, *seed, *stream);
                let u = f64::from(w[0] >> 8) / 16_777_216.0;
                real(out, (bound * (2.0 * u - 1.0)) as f32);
            }
        }
        Init::Normal { mean, std, seed, stream } => {
            for i in 0..n {
                // Box and Muller (1958): two normals from each pair of uniforms in (0, 1].
                let w = draw(i as u64 / 2, *seed, *stream);
                let u = |w: u32| (f64::from(w) + 1.0) / 4_294_967_296.0;
                let (r, a) = ((-2.0 * u(w[0]).ln()).sqrt(), std::f64::consts::TAU * u(w[1]));
                let z = if i % 2 == 0 { r * a.cos() } else { r * a.sin() };
                real(out, (mean + std * z) as f32);
            }
        }
        Init::Bytes(hex) => {
            let digit = |c: u8| (c as char).to_digit(16).expect("validated") as u8;
            out.extend(hex.as_bytes().chunks(2).map(|c| digit(c[0]) << 4 | digit(c[1])));
        }
        Init::CopyOf(_) | Init::ChannelsLastOf(_) => unreachable!("handled by the caller"),
    }
    debug_assert_eq!(out.len(), n * t.dtype.size());
    Ok(())
}

/// Philox words of element `i` of a stream.
fn draw(i: u64, seed: u64, stream: u32) -> [u32; 4] {
    // Word 3 is 1 here and 0 in programs, so that initial values and dropout never share draws.
    philox([i as u32, (i >> 32) as u32, stream, 1], [seed as u32, (seed >> 32) as u32])
}

fn missing(name: &str, weights: &dyn WeightSource) -> Error {
    let names = weights.names();
    let tail = |s: &str| s.rsplit('.').next().unwrap_or(s).to_string();
    let near: Vec<&String> = names.iter().filter(|n| tail(n) == tail(name)).take(4).collect();
    let help = if near.is_empty() {
        "give the file with the model's weights, or `init = \"default\"` in the recipe".to_string()
    } else {
        let list: Vec<&str> = near.iter().map(|s| s.as_str()).collect();
        format!("there is {}", list.join(", "))
    };
    let place = weights.describe();
    Error::new("R0301", format!("there are no weights named `{name}`")).at(place).help(help)
}

#[cfg(test)]
mod tests {
    use super::channels_last;

    #[test]
    fn channels_move_behind_pixels() {
        // [1,2,3] of two bytes: channel c, pixel p is 10 c + p.
        let element = |c: u8, p: u8| [10 * c + p, 0xff];
        let of = |list: &[(u8, u8)]| -> Vec<u8> {
            list.iter().flat_map(|&(c, p)| element(c, p)).collect()
        };
        let from = of(&[(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
        let to = of(&[(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]);
        assert_eq!(channels_last(&from, [1, 2, 3], 2), to);
    }
}
