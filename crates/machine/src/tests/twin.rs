//! Random logs: the machine compared with the naive model.

use proptest::prelude::*;
use quorate_storage::RowKind;

use super::{
    build::{SMALL, Shard, Step, log},
    model::Model,
};
use crate::{Record, Refusal, WriteAnswer};

fn without_sentence(answer: WriteAnswer) -> WriteAnswer {
    match answer {
        WriteAnswer::Refused(Refusal::WrongShard { .. }) => {
            WriteAnswer::Refused(Refusal::WrongShard { detail: String::new() })
        }
        other => other,
    }
}

fn run(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut shard = Shard::new(SMALL);
    let mut model = Model::new(SMALL);
    for step in steps {
        shard.now_ms += step.after_ms;
        let Some(command) = &step.command else { continue };
        let answer = without_sentence(shard.apply(command));
        (model.index, model.now_ms) = (shard.index, shard.now_ms);
        prop_assert_eq!(&answer, &model.apply(command), "at {} to {:?}", shard.index, command);

        let rows = shard.rows.of_kind(RowKind::User).map(Result::unwrap);
        let rows: Vec<_> =
            rows.map(|(key, row)| (key.key().to_vec(), Record::decode(row).unwrap())).collect();
        let cells = model.cells.iter().map(|(key, cell)| {
            let record = Record {
                create_revision: cell.create_revision,
                revision: cell.revision,
                log_time: cell.log_time,
                expiry: None,
                value: cell.value.clone().into(),
            };
            (key.clone(), record)
        });
        prop_assert_eq!(rows, cells.collect::<Vec<_>>());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_and_row_is_the_models(steps in log(120)) {
        run(&steps)?;
    }
}
