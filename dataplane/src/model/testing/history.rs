//! What happens to a table, one thing after another, for properties.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::random::{any_context, any_name, any_service, any_slices};
use crate::model::{Context, Diff, EndpointSlice, ForwardingTable, Service, ServiceName, compile};

/// What may happen to a table.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Set(Box<(Service, Vec<EndpointSlice>)>),
    Remove(ServiceName),
    Context(Box<Context>),
}

/// Something happens.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (any_service(), any_slices()).prop_map(|objects| Step::Set(Box::new(objects))),
        2 => any_name().prop_map(Step::Remove),
        1 => any_context().prop_map(|context| Step::Context(Box::new(context))),
    ]
}

/// The objects behind a table, as the agent has them.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) context: Context,
    pub(crate) services: BTreeMap<ServiceName, (Service, Vec<EndpointSlice>)>,
}

impl Objects {
    /// Does it to the table, and notes what differs.
    pub(crate) fn take(&mut self, table: &mut ForwardingTable, diff: &mut Diff, step: &Step) {
        match step {
            Step::Set(objects) => {
                let (service, slices) = objects.as_ref();
                table.set(compile(service, slices, &self.context), diff);
                self.services
                    .insert(service.name.clone(), (service.clone(), slices.clone()));
            }
            Step::Remove(name) => {
                table.remove(name, diff);
                self.services.remove(name);
            }
            Step::Context(context) => {
                self.context = context.as_ref().clone();
                table.set_context(self.context.clone(), diff);
                for (service, slices) in self.services.values() {
                    table.set(compile(service, slices, &self.context), diff);
                }
            }
        }
    }

    /// The table that somebody has who never saw anything else.
    pub(crate) fn build<'a>(
        context: &Context,
        services: impl IntoIterator<Item = &'a (Service, Vec<EndpointSlice>)>,
    ) -> ForwardingTable {
        let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
        table.set_context(context.clone(), &mut diff);
        for (service, slices) in services {
            table.set(compile(service, slices, context), &mut diff);
        }
        table
    }
}
