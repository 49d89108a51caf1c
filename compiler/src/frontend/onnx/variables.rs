//! Parameters and buffers as variables of the graph, and where their first values are.

use super::import::{Importer, Res};
use super::node::fail;
use super::params::Role;
use super::source::{Source, Storage};
use super::tensor::Elem;
use crate::ir::{TensorType, ValueId, Var, VarInit, VarRole};
use crate::ops;
use std::collections::BTreeMap;

/// Later initializers whose external bytes are those of an earlier one of the same type.
pub(super) fn aliases(src: &Source) -> BTreeMap<String, String> {
    let mut first: BTreeMap<(&str, u64, &[usize], Elem), &str> = BTreeMap::new();
    let mut out = BTreeMap::new();
    for (name, init) in &src.initializers {
        // An offset is what makes two tensors of one file the same; stripped models have none.
        if let Storage::External { location, offset } = &init.storage
            && init.elem.is_real()
            && *offset > 0
            && !src.copies.contains(name)
        {
            let key = (location.as_str(), *offset, &init.shape[..], init.elem);
            match first.get(&key) {
                Some(f) => {
                    out.insert(name.clone(), (*f).to_string());
                }
                None => {
                    first.insert(key, name);
                }
            }
        }
    }
    out
}

impl Importer<'_> {
    /// The node that reads a parameter or buffer.
    pub fn variable(&mut self, name: &str) -> Res<ValueId> {
        if let Some(&v) = self.vars.get(name) {
            return Ok(v);
        }
        let init = &self.src.initializers[name];
        let role = self.roles[name].role;
        let stream = self.src.initializers.get_index_of(name).expect("looked up above") as u32;
        let first = self.first_value(name, role, stream)?;
        let ty = TensorType::f32(init.shape.clone());
        let kind = match role {
            Role::RunningMean | Role::RunningVar | Role::Buffer => VarRole::Buffer,
            _ => VarRole::Param,
        };
        let v = self.state(name, Var { ty, role: kind, init: first })?;
        self.vars.insert(name.into(), v);
        Ok(v)
    }

    /// Adds a variable and the node that reads it.
    pub fn state(&mut self, name: &str, var: Var) -> Res<ValueId> {
        let op = ops::Var::new(name, &var.ty);
        self.graph.vars.insert(name.into(), var);
        let base = std::mem::replace(&mut self.base, name.into());
        let v = self.one("", op, &[]);
        self.base = base;
        v
    }

    fn first_value(&mut self, name: &str, role: Role, stream: u32) -> Res<VarInit> {
        let init = &self.src.initializers[name];
        let place = || self.src.tensor_place(name);
        // What is no parameter to PyTorch need not be in its state.
        let own = role == Role::Buffer;
        if let Some(file) = &self.weights
            && ((self.opts.init.is_none() && !own) || file.holds(name))
        {
            file.check(name, &init.shape)?;
            return Ok(VarInit::Weights(name.into()));
        }
        if let Some(scheme) = self.opts.init
            && self.src.lacks(init)
            && !own
        {
            self.drawn.push(name.into());
            return Ok(scheme.of(role, stream));
        }
        let dtype = init.elem.file_dtype();
        let literal = || -> Res<VarInit> {
            let t = self.src.literal(name)?;
            Ok(VarInit::Data(t.to_const()))
        };
        match (&init.storage, dtype) {
            (Storage::External { location, offset }, Some(dtype)) => {
                self.src.external_file(name, location, *offset, init.bytes() as u64)?;
                Ok(VarInit::File { path: location.clone(), offset: *offset, dtype })
            }
            (Storage::External { .. }, None) => {
                Err(fail("P0207", format!("external weights are {:?}", init.elem))
                    .at(place())
                    .help("store weights as float32, float16 or bfloat16"))
            }
            (Storage::Raw { offset }, Some(dtype)) if self.src.on_disk() => {
                let path = self.src.path.file_name().unwrap_or_default().to_string_lossy();
                Ok(VarInit::File { path: path.into_owned(), offset: *offset, dtype })
            }
            (Storage::Raw { .. } | Storage::Fields(_), _) => literal(),
        }
    }
}
