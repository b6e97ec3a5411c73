//! Macro for the table of settings: one row is one setting.
//!
//! A row of the table in `lib.rs` reads like this:
//!
//! ```text
//! /// Address to serve other nodes on [default: as --listen]
//! ///
//! /// The same address as `listen` means one listener for both.
//! PeerListen "peer-listen" peer_listen: SocketAddr => (listen, "as listen");
//! ```
//!
//! | part | here | what it gives |
//! |---|---|---|
//! | first paragraph | `Address to serve …` | the help of the flag, and the doc of the field |
//! | other paragraphs | `The same address …` | the doc of the field only |
//! | variant | `PeerListen` | [`Key::PeerListen`](crate::Key::PeerListen) |
//! | name | `"peer-listen"` | the flag, the key in the file, and with it the variable |
//! | field | `peer_listen` | the field of [`Config`](crate::Config) |
//! | type | `SocketAddr` | its [`Value`]: parser, written form, word for it in the help |
//! | `= VALUE` | – | the default; the help gets ` [default: VALUE]` |
//! | `=> (VALUE, "why")` | `(listen, "as listen")` | a default that follows from something |
//! | `, check CHECK` | – | the [check](crate::check) of this value without the others |
//!
//! A row has one of the two kinds of default. The help of a default that is computed has to
//! describe it. A default may use the fields of the rows above its own, and the [`Reader`] by the
//! name between the bars. The order of the rows is the order of `--help` and of `config show`. The
//! fields behind `with` are computed and are not settings.
//!
//! [`Value`]: crate::kinds::Value
//! [`Reader`]: crate::resolve::Reader

/// Generates from the rows `Key` with `ALL`, `name` and `flag`, and the struct with `read` and
/// `errors`.
macro_rules! settings {
    (
        $(#[$about:meta])*
        pub struct $config:ident |$reader:ident| {
            $(
                $(#[doc = $doc:literal])+
                $key:ident $name:literal $field:ident: $type:ty
                    $(= $default:expr)? $(=> $derived:expr)? $(, check $check:expr)?;
            )+
        } with {
            $($(#[$about_more:meta])+ $more:ident: $more_type:ty = $computed:expr;)*
        }
    ) => {
        /// One setting. The order is the one of `--help` and `config show`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Key {
            $(#[doc = concat!("See [`Config::", stringify!($field), "`].")] $key,)+
        }

        impl Key {
            /// Every setting, in order.
            pub const ALL: [Self; [$(Self::$key),+].len()] = [$(Self::$key),+];

            /// The name in the file, and behind `--` on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$key => $name,)+ }
            }

            /// The flag of this setting.
            fn flag(self) -> clap::Arg {
                match self {
                    $(Self::$key => args::flag::<$type>($name, &[$($doc),+], &[$($default)?]),)+
                }
            }
        }

        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $config {
            $($(#[doc = $doc])+ pub $field: $type,)+
            $($(#[$about_more])+ pub $more: $more_type,)*
        }

        impl $config {
            /// Parses every setting, or computes its default, and lists the effective values.
            fn read($reader: &Reader<'_>) -> Result<(Self, Vec<Effective>), ConfigError> {
                let mut settings = Vec::new();
                $(let $field: $type = $reader.read(Key::$key, &mut settings, || {
                    $(($default, ""))? $($derived)?
                })?;)+
                $(let $more = $computed;)*
                Ok((Self { $($field,)+ $($more,)* }, settings))
            }

            /// The errors of the checks of the rows.
            fn errors(&self) -> Vec<ConfigError> {
                let checked = [
                    $($($check(Key::$key, &self.$field),)?)+
                ];
                checked.into_iter().filter_map(Result::err).collect()
            }
        }
    };
}

pub(crate) use settings;
