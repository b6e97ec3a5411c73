//! The shape of the wire contract.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

use super::sources::assert_none;

fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(quorate_proto::FILE_DESCRIPTOR_SET_ALL)
        .expect("the compiled descriptors decode");
    set.file.into_iter().filter(|file| file.package().starts_with("quorate.")).collect()
}

/// The paths of all elements that have a comment before or behind them.
fn commented(file: &FileDescriptorProto) -> BTreeSet<Vec<i32>> {
    let info = file.source_code_info.as_ref().expect("descriptors with comments");
    let with_comment = info.location.iter().filter(|location| {
        !location.leading_comments().trim().is_empty()
            || !location.trailing_comments().trim().is_empty()
    });
    with_comment.map(|location| location.path.clone()).collect()
}

/// Calls `see` with the path and the full name of every message and enum.
fn each(
    file: &FileDescriptorProto,
    message: &mut dyn FnMut(&[i32], &str, &DescriptorProto),
    enumeration: &mut dyn FnMut(&[i32], &str, &EnumDescriptorProto),
) {
    fn nested(
        path: &[i32],
        prefix: &str,
        of: &DescriptorProto,
        message: &mut dyn FnMut(&[i32], &str, &DescriptorProto),
        enumeration: &mut dyn FnMut(&[i32], &str, &EnumDescriptorProto),
    ) {
        if of.options.as_ref().is_some_and(|options| options.map_entry()) {
            return;
        }
        let name = format!("{prefix}.{}", of.name());
        message(path, &name, of);
        for (at, inner) in of.nested_type.iter().enumerate() {
            nested(&[path, &[3, at as i32]].concat(), &name, inner, message, enumeration);
        }
        for (at, inner) in of.enum_type.iter().enumerate() {
            let inner_name = format!("{name}.{}", inner.name());
            enumeration(&[path, &[4, at as i32]].concat(), &inner_name, inner);
        }
    }
    for (at, of) in file.message_type.iter().enumerate() {
        nested(&[4, at as i32], file.package(), of, message, enumeration);
    }
    for (at, of) in file.enum_type.iter().enumerate() {
        let name = format!("{}.{}", file.package(), of.name());
        enumeration(&[5, at as i32], &name, of);
    }
}

#[test]
fn everything_has_a_comment() {
    let mut bare = Vec::new();
    for file in files() {
        let commented = commented(&file);
        let bare = std::cell::RefCell::new(&mut bare);
        let check = |path: Vec<i32>, name: String| {
            if !commented.contains(&path) {
                bare.borrow_mut().push(name);
            }
        };
        each(
            &file,
            &mut |path, name, of| {
                check(path.to_vec(), name.to_owned());
                for (at, field) in of.field.iter().enumerate() {
                    check([path, &[2, at as i32]].concat(), format!("{name}.{}", field.name()));
                }
            },
            &mut |path, name, of| {
                check(path.to_vec(), name.to_owned());
                for (at, value) in of.value.iter().enumerate() {
                    check([path, &[2, at as i32]].concat(), format!("{name}.{}", value.name()));
                }
            },
        );
        for (at, service) in file.service.iter().enumerate() {
            check(vec![6, at as i32], service.name().to_owned());
            for (method_at, method) in service.method.iter().enumerate() {
                let path = vec![6, at as i32, 2, method_at as i32];
                check(path, format!("{}.{}", service.name(), method.name()));
            }
        }
    }
    assert_none("every part of the wire contract says what it means", &bare);
}

#[test]
fn enums_begin_with_an_unspecified_value_and_carry_their_name() {
    let mut wrong = Vec::new();
    for file in files() {
        each(&file, &mut |_, _, _| {}, &mut |_, name, of| {
            let prefix = screaming(of.name());
            for value in &of.value {
                let expected =
                    value.number() != 0 || value.name() == format!("{prefix}_UNSPECIFIED");
                if !value.name().starts_with(&format!("{prefix}_")) || !expected {
                    wrong.push(format!("{name}: {}", value.name()));
                }
            }
        });
    }
    assert_none("enum values are prefixed, and 0 is unspecified", &wrong);
}

fn screaming(name: &str) -> String {
    let mut out = String::new();
    for (at, c) in name.chars().enumerate() {
        if c.is_uppercase() && at > 0 {
            out.push('_');
        }
        out.extend(c.to_uppercase());
    }
    out
}

#[test]
fn names_are_of_one_style() {
    let mut wrong = Vec::new();
    for file in files() {
        each(
            &file,
            &mut |_, name, of| {
                for field in &of.field {
                    let snake = field
                        .name()
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
                    if !snake {
                        wrong.push(format!("{name}.{}", field.name()));
                    }
                }
            },
            &mut |_, _, _| {},
        );
        for service in &file.service {
            for method in &service.method {
                let input = method.input_type().rsplit('.').next().unwrap_or_default();
                let output = method.output_type().rsplit('.').next().unwrap_or_default();
                let named = input == format!("{}Request", method.name())
                    && output == format!("{}Response", method.name());
                if !named {
                    wrong.push(format!("{}.{}", service.name(), method.name()));
                }
            }
        }
    }
    assert_none("fields are snake_case, each method has its own request and response", &wrong);
}

#[test]
fn the_node_protocol_is_not_reflected() {
    let set = FileDescriptorSet::decode(quorate_proto::FILE_DESCRIPTOR_SET)
        .expect("the compiled descriptors decode");
    let packages: BTreeSet<_> = set.file.iter().map(|file| file.package()).collect();
    assert!(packages.contains("quorate.v1"));
    assert!(!packages.contains("quorate.raft.v1"), "{packages:?}");
}
