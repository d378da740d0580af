"""The search methods by name."""

from plywise.agent.greedy import Greedy
from plywise.agent.knapsack import Knapsack
from plywise.agent.random_search import RandomSearch
from plywise.agent.search_method import SearchMethod
from plywise.agent.uniform import Uniform

SEARCH_METHODS: dict[str, SearchMethod] = {
    method.name: method for method in (RandomSearch(), Uniform(), Greedy(), Knapsack())
}
"""Methods that need no training; `unknown_name` of the error tree words the error for a name that is not here."""
