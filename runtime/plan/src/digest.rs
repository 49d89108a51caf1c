//! A plan's digest: what tells a plan as it was written from one that was changed since. It covers
//! what a plan means, and not what it says for people ([`Plan::DESCRIPTION`]).

use crate::program::{InPort, Instr, OutPort};
use crate::schema::{Classes, Kernel, Named, Plan, Step, Tensor};
use serde::Deserialize;
use serde::Serialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::io;

/// What a plan file says of its own content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seal {
    /// Its digest is that of its content.
    Whole,
    /// It has no digest: a person wrote it, or another tool.
    Absent,
    /// Its content was changed since its digest was written.
    Changed,
}

/// Everything that decides what a plan computes, where, from what and under which names.
#[derive(Serialize)]
struct Meaning<'p> {
    version: u32,
    device: &'p str,
    tensors: &'p [Tensor],
    programs: Vec<(&'p [InPort], &'p [Instr], &'p [OutPort])>,
    micro: Vec<&'p Kernel>,
    update: Vec<&'p Kernel>,
    eval: Vec<&'p Kernel>,
    accumulate: u32,
    arena_bytes: u64,
    persistent_bytes: u64,
    results: &'p [Named],
    eval_results: &'p [Named],
    classes: &'p [Classes],
}

/// FNV-1a, 64 bits: against mistakes, not against forgery.
struct Fnv(u64);

impl io::Write for Fnv {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Plan {
    /// Fields that describe: nothing that a plan computes depends on them, and no digest covers them.
    /// `docs/PLAN.md` lists the same.
    pub const DESCRIPTION: &'static [&'static str] = &[
        "model",
        "target.name",
        "arena_bound_bytes",
        "programs[].name",
        "micro[].name",
        "micro[].ops",
        "micro[].predicted_ns",
        "update[].name",
        "update[].ops",
        "update[].predicted_ns",
        "eval[].name",
        "eval[].ops",
        "eval[].predicted_ns",
        "summary",
        "journal",
    ];

    /// 16 hexadecimal digits that follow from what the plan means.
    pub fn digest(&self) -> String {
        fn kernels(steps: &[Step]) -> Vec<&Kernel> {
            steps.iter().map(|s| &s.kernel).collect()
        }
        let programs = self.programs.iter();
        let meaning = Meaning {
            version: self.version,
            device: &self.target.device,
            tensors: &self.tensors,
            programs: programs.map(|p| (&p.inputs[..], &p.code[..], &p.outputs[..])).collect(),
            micro: kernels(&self.micro),
            update: kernels(&self.update),
            eval: kernels(&self.eval),
            accumulate: self.accumulate,
            arena_bytes: self.arena_bytes,
            persistent_bytes: self.persistent_bytes,
            results: &self.results,
            eval_results: &self.eval_results,
            classes: &self.classes,
        };
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        serde_json::to_writer(&mut hash, &meaning).expect("a plan has string keys only");
        format!("{:016x}", hash.0)
    }
}

/// A plan and the digest beside its fields, which is no field of a plan.
pub(crate) struct Sealed {
    pub plan: Plan,
    pub digest: Option<String>,
}

impl<'de> Deserialize<'de> for Sealed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Sealed, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Sealed;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a plan")
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Sealed, M::Error> {
                let mut digest = None;
                let rest = Rest { map, digest: &mut digest };
                let plan = Plan::deserialize(MapAccessDeserializer::new(rest))?;
                Ok(Sealed { plan, digest })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// The fields of a map without its digest.
struct Rest<'a, M> {
    map: M,
    digest: &'a mut Option<String>,
}

impl<'de, M: MapAccess<'de>> MapAccess<'de> for Rest<'_, M> {
    type Error = M::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, M::Error> {
        loop {
            let Some(key) = self.map.next_key::<Cow<'de, str>>()? else { return Ok(None) };
            if key != "digest" {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
            if self.digest.replace(self.map.next_value()?).is_some() {
                return Err(de::Error::duplicate_field("digest"));
            }
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, M::Error> {
        self.map.next_value_seed(seed)
    }
}
