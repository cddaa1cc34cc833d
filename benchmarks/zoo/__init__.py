"""The zoo: many models, transformed one by one."""
